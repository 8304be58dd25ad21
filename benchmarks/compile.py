"""How long compiling takes, how much memory it needs, how big the program gets; loading and starting times.

    python -m benchmarks.compile [--only NAME]… [--json FILE]

`smollm2`      int4, with a cold and with a warm object cache
`widths`       SmolLM2 with 30 different FFN widths and a random mix of 4- and 8-bit layers, cold; its program beside
               that of `smollm2` in plain 4 bits
`tinyllama`    1.1 billion random weights in TinyLlama's shape, int4, cold
`start`        `smc --help`, `import smc`, and loading an artifact: medians of 5

Memory is the peak of the whole process tree, sampled 20 times per second: the sum of the processes' proportional set
sizes, in which a page that several share counts once. A cold cache is an empty folder (SMC_CACHE).
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from benchmarks import inputs, models
from benchmarks.publish import Table, publish


@dataclass
class Run:
    """One run of a command: wall-clock seconds and the process tree's peak memory in bytes."""

    seconds: float
    peak_bytes: int


def run(command: list[str], environment: dict[str, str] | None = None) -> Run:
    """Run a command to its end while sampling its memory."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | (environment or {}), stdout=subprocess.DEVNULL)
    peak = 0
    finished = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not finished.wait(0.05):
            peak = max(peak, tree_bytes(process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    status = process.wait()
    seconds = time.perf_counter() - start
    finished.set()
    sampler.join()
    if status:
        raise SystemExit(f"this command failed: {' '.join(command)}")
    return Run(seconds, peak)


def tree_bytes(pid: int) -> int:
    """Proportional set size of a process and all its descendants, in bytes."""
    total = 0
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except (OSError, ValueError):  # it has just ended
            continue
        total += 1024 * next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return total


def program_bytes(artifact: Path) -> int:
    """Size of the machine code member of an artifact."""
    with zipfile.ZipFile(artifact) as file:
        return file.getinfo("program.so").file_size


def compile_model(model: Path, out: Path, cache: Path, *options: str) -> dict[str, float]:
    """Compile a model for this machine with the object cache in `cache`; what it took."""
    command = [*inputs.SMC, "compile", str(model), "--target", "native", *options, "-o", str(out)]
    done = run(command, {"SMC_CACHE": str(cache)})
    return {
        "seconds": done.seconds,
        "peak_GiB": done.peak_bytes / 2**30,
        "program_kB": program_bytes(out) / 1e3,
        "artifact_MB": out.stat().st_size / 1e6,
    }


def measure_smollm2(folder: Path) -> dict[str, dict[str, float]]:
    """SmolLM2 int4, cold and warm."""
    model, out = inputs.offgrid_model(), folder / "smollm2.smc"
    return {
        "smollm2 int4, cold": compile_model(model, out, folder / "cache", "--quant", "int4"),
        "smollm2 int4, warm": compile_model(model, out, folder / "cache", "--quant", "int4"),
    }


def measure_widths(folder: Path) -> dict[str, dict[str, float]]:
    """30 FFN widths and mixed precision, beside the same model with one width and one precision."""
    path = inputs.BUILD / "models" / "smollm2-widths"
    if not path.exists():
        models.smollm2(path, off_grid=True, widths=models.WIDTHS)
    eight_bits = random.Random(0).sample(range(len(models.WIDTHS)), len(models.WIDTHS) // 2)
    recipe = folder / "mixed.yaml"
    patterns = ", ".join(f"model.layers.{layer}.*" for layer in sorted(eight_bits))
    recipe.write_text(
        f"passes:\n  - quantize-rtn: {{bits: 8, include: [{patterns}]}}\n  - quantize-rtn: {{bits: 4}}\n",
        encoding="utf-8",
    )
    uniform = compile_model(inputs.offgrid_model(), folder / "a.smc", folder / "cache-a", "--quant", "int4-plain")
    mixed = compile_model(path, folder / "b.smc", folder / "cache-b", "--recipe", str(recipe))
    mixed["program_ratio"] = mixed["program_kB"] / uniform["program_kB"]
    return {"smollm2 int4-plain, cold": uniform, "30 widths, 4 and 8 bits, cold": mixed}


def measure_tinyllama(folder: Path) -> dict[str, dict[str, float]]:
    """1.1 billion weights."""
    path = inputs.BUILD / "models" / "tinyllama-random"
    if not path.exists():
        models.random(path, models.TINYLLAMA_CONFIG)
    return {"tinyllama int4, cold": compile_model(path, folder / "tinyllama.smc", folder / "cache", "--quant", "int4")}


def measure_start(folder: Path) -> dict[str, dict[str, float]]:
    """What a user waits for before anything happens. Loading counts from the call to the return of `smc.load`."""
    artifact = inputs.artifact(inputs.offgrid_model(), "int4")
    load = f"import smc, time; t = time.perf_counter(); smc.load({str(artifact)!r}); print(time.perf_counter() - t)"

    def median(command: list[str]) -> float:
        return statistics.median(run(command).seconds for _ in range(5))

    def load_seconds() -> float:
        return float(subprocess.check_output([sys.executable, "-c", load], text=True))

    return {
        "smc --help": {"seconds": median([*inputs.SMC, "--help"])},
        "import smc": {"seconds": median([sys.executable, "-c", "import smc"])},
        "smc.load": {"seconds": statistics.median(load_seconds() for _ in range(5))},
    }


MEASUREMENTS = {
    "smollm2": measure_smollm2,
    "widths": measure_widths,
    "tinyllama": measure_tinyllama,
    "start": measure_start,
}


def table(rows: dict[str, dict[str, float]]) -> Table:
    """The table of docs/benchmarks.md."""
    lines = [
        [name, f"{row['seconds']:.2f}", f"{row['peak_GiB']:.2f} GiB" if "peak_GiB" in row else ""]
        for name, row in rows.items()
    ]
    return Table("", ["what", "seconds", "peak memory"], lines)


@click.command(help=__doc__)
@click.option("--only", multiple=True, type=click.Choice(list(MEASUREMENTS)), help="Some of them; may be repeated.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there too.")
@click.option("--publish", "published", is_flag=True, help="Write the table for docs/benchmarks.md.")
def main(only: tuple[str, ...], json_file: Path | None, published: bool) -> None:
    """Measure and print, one line a figure."""
    rows: dict[str, dict[str, float]] = {}
    click.echo(inputs.machine())
    for name in only or MEASUREMENTS:
        with tempfile.TemporaryDirectory(dir=inputs.BUILD) as folder:
            figures = MEASUREMENTS[name](Path(folder))
        for row, values in figures.items():
            click.echo(f"{row:<32}" + "".join(f"{key} {value:.2f}   " for key, value in values.items()))
        rows |= figures
    if json_file:
        figures_json = {"machine": inputs.machine(), "rows": rows}
        json_file.write_text(json.dumps(figures_json, indent=2) + "\n", encoding="utf-8")
    if published:
        publish("compile", [table(rows)])


if __name__ == "__main__":
    main()
