"""smc, llama.cpp and OpenVINO GenAI on one model in one run: the README's table.

    pip install openvino-genai                       # or into another environment: --openvino-python
    python -m benchmarks.peers [--rounds 5] [--publish]

The model is the off-grid SmolLM2 at 4.5 bits per weight: smc's `int4-plain`, llama.cpp's pure Q4_0, and the same file
in OpenVINO GenAI, which reads GGUF and repacks it. The programs run one after another in every round, in an order that
rotates from round to round. Figures are medians of the rounds.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks import inputs, peer
from benchmarks.publish import Table, publish
from benchmarks.speed import Case, run_json

QUANT, FORMAT = "int4-plain", "Q4_0"
DRIVER = Path(__file__).parent / "openvino_driver.py"


def openvino_speed(python: str, gguf: Path, case: Case, threads: int) -> float:
    """Tokens per second of OpenVINO GenAI."""
    command = [python, str(DRIVER), str(gguf), case.kind, str(case.tokens), str(threads)]
    return float(run_json(command)["tokens_per_s"])


def measure(case: Case, artifact: Path, gguf: Path, python: str, threads: int, rounds: int) -> list[float]:
    """The median of each program: smc, llama.cpp, OpenVINO GenAI."""
    openvino: list[float] = []
    programs: list[Callable[[], None]] = [
        lambda: case.run_smc(artifact, threads, None),
        lambda: case.run_llama_cpp(gguf, threads, None),
        lambda: openvino.append(openvino_speed(python, gguf, case, threads)),
    ]
    for number in range(rounds):
        for place in range(3):
            programs[(number + place) % 3]()
    return [statistics.median(speeds) for speeds in (case.smc, case.llama_cpp, openvino)]


def table(rows: list[tuple[str, list[float]]]) -> Table:
    """The measured rows of the README's table."""
    cells = [[name, *(f"{value:,.0f}" for value in values)] for name, values in rows]
    return Table("", ["SmolLM2-135M, 4.5 bits per weight", "smc", "llama.cpp", "OpenVINO GenAI"], cells)


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--openvino-python", default=sys.executable, help="A Python that has openvino-genai.")
@click.option("--publish", "published", is_flag=True, help="Write the table for the README.")
def main(rounds: int, threads: int, openvino_python: str, published: bool) -> None:
    """Measure and print."""
    peer.build()
    model = inputs.offgrid_model()
    artifact, gguf = inputs.artifact(model, QUANT), peer.convert(model, FORMAT, pure=True)
    cases = [Case("decode", 64), Case("prefill", 128), Case("prefill", 512)]
    rows = []
    with click.progressbar(cases, label="cases") as progress:
        for case in progress:
            values = measure(case, artifact, gguf, openvino_python, threads, rounds)
            rows.append((f"{case.name}, tokens/s", values))
    found = table(rows)
    click.echo(found.markdown())
    if published:
        publish("peers", [found])


if __name__ == "__main__":
    main()
