"""Speed on x86-64 beside llama.cpp: the tables of docs/benchmarks.md, one row per case.

    python -m benchmarks.llama_cpp [--only tinyllama*] [--rounds 5] [--publish]
    python -m benchmarks.llama_cpp --only 'family-*'     Gemma 3 270M, Qwen 2.5 0.5B and StableLM 2 1.6B, random weights
    python -m benchmarks.llama_cpp --list

Every round measures every row once. A row runs both programs, and the order alternates from round to round: what else
the machine does hits rows and programs alike. A row replaces what was kept of it in build/llama_cpp.json, or with
`--add` continues its rounds if they are of the same commit; the tables show all rows kept. Models, artifacts and
llama.cpp are made first where they are missing; `--prepare` does only that.
"""

from __future__ import annotations

import fnmatch
import os
from datetime import date
from functools import partial
from pathlib import Path

import click

from benchmarks import inputs, llama_cpp_results
from benchmarks.llama_cpp_results import Result
from benchmarks.llama_cpp_rows import Bandwidth, Model, OutsideKernels, Quality, Row, Speed, TernaryGemv
from benchmarks.publish import publish
from benchmarks.shapes import GEMMA3_270M, QWEN25_05B, STABLELM2_16B
from benchmarks.speed import Case

SMOLLM2 = Model("SmolLM2", inputs.offgrid_model, "int4-plain", "Q4_0-pure")
SMOLLM2_INT4 = Model("SmolLM2 `int4`", inputs.offgrid_model, "int4", "Q4_0-pure")
TINYLLAMA = Model("TinyLlama", inputs.tinyllama_model, "int4-plain", "Q4_0-pure")
TERNARY = Model("TinyLlama ternary", inputs.tinyllama_model, "ternary", "TQ2_0")

SHAPES = {
    "gemma-3-270m": ("Gemma 3 270M", GEMMA3_270M),
    "qwen2.5-0.5b": ("Qwen 2.5 0.5B", QWEN25_05B),
    "stablelm-2-1.6b": ("StableLM 2 1.6B", STABLELM2_16B),
}
"""Shapes of other families: the start of a row's key → the name for people, the config."""

KEPT = inputs.BUILD / "llama_cpp.json"
THREADS, LOAD, BATCHES, QUALITY = "threads", "with other programs", "sequences at once", "mean KL divergence, nats"
FAMILIES = "other families, random weights"


def rows(threads: int) -> list[Row]:
    """All rows; threads: of those that name no number themselves."""
    decode, deep = Case("decode", 64), Case("decode", 32, 4096)
    found: list[Row] = [
        Speed("smollm2-decode", SMOLLM2, decode, threads),
        Speed("smollm2-decode-int4", SMOLLM2_INT4, decode, threads),
        Speed("smollm2-prefill-128", SMOLLM2, Case("prefill", 128), threads),
        Speed("smollm2-prefill-512", SMOLLM2, Case("prefill", 512), threads),
        Speed("smollm2-decode-4096", SMOLLM2, deep, threads),
        Speed("tinyllama-decode", TINYLLAMA, Case("decode", 32), threads),
        Speed("tinyllama-decode-512", TINYLLAMA, Case("decode", 32, 512), threads),
        Speed("tinyllama-prefill-512", TINYLLAMA, Case("prefill", 512), threads),
        Speed("ternary-decode", TERNARY, Case("decode", 32), threads),
        Speed("ternary-prefill-64", TERNARY, Case("prefill", 64), threads),
        Speed("avx2-decode", SMOLLM2, decode, threads, level="avx2"),
        Speed("avx2-prefill-128", SMOLLM2, Case("prefill", 128), threads, level="avx2"),
        TernaryGemv("ternary-gemv"),
        Bandwidth("smollm2-bandwidth", SMOLLM2, threads),
        Bandwidth("tinyllama-bandwidth", TINYLLAMA, threads),
        Bandwidth("smollm2-phases", SMOLLM2, threads, phases=True),
        Bandwidth("tinyllama-phases", TINYLLAMA, threads, phases=True),
        OutsideKernels("smollm2-outside-kernels", SMOLLM2, threads),
        OutsideKernels("tinyllama-outside-kernels", TINYLLAMA, threads),
    ]
    for kind, case in (("decode", decode), ("prefill", Case("prefill", 512))):
        one = f"threads-{kind}-1"
        found.append(Speed(one, SMOLLM2, case, 1, table=THREADS))
        for count in (2, 4):
            found.append(Speed(f"threads-{kind}-{count}", SMOLLM2, case, count, table=THREADS, base=one))
    found.append(Speed("load-0", SMOLLM2, decode, threads, table=LOAD))
    found.append(Speed("load-1", SMOLLM2, decode, threads, busy=1, table=LOAD, base="load-0"))
    for count in (1, 4, 8):
        base = "batch-1" if count > 1 else None
        found.append(Speed(f"batch-{count}", SMOLLM2, Case("decode", 32, 16, count), threads, table=BATCHES, base=base))
    for key, (name, config) in SHAPES.items():
        model = Model(name, partial(inputs.random_model, key, config), "int4-plain", "Q4_0-pure")
        found.append(Speed(f"family-{key}-decode", model, decode, threads, table=FAMILIES))
        found.append(Bandwidth(f"family-{key}-phases", model, threads, phases=True, table=FAMILIES))
    found += [Quality(f"quality-{model.quant}", model, threads, table=QUALITY) for model in (SMOLLM2, SMOLLM2_INT4)]
    return found


def choose(found: list[Row], patterns: tuple[str, ...]) -> list[Row]:
    """The rows whose key fits one of the patterns; all without patterns."""
    chosen = [row for row in found if not patterns or any(fnmatch.fnmatch(row.key, pattern) for pattern in patterns)]
    if not chosen:
        raise click.BadParameter("no row fits; --list shows them", param_hint="--only")
    return chosen


def merged(found: list[Row], kept: dict[str, Result], measured: list[Row], *, add: bool = False) -> dict[str, Result]:
    """What was kept, with the measured rows put in its place, in the order of all rows.

    add: put them behind what was kept of this commit.
    """
    commit, day, machine = inputs.commit(), date.today().isoformat(), inputs.machine()
    results = {}
    for row in found:
        old = kept.get(row.key)
        if row in measured:
            earlier = old if add and old and old.commit == commit else None
            smc, llama_cpp = (earlier.smc, earlier.llama_cpp) if earlier else ([], [])
            results[row.key] = row.result(smc + row.smc, llama_cpp + row.llama_cpp, commit, day, machine)
        elif old:
            results[row.key] = row.result(old.smc, old.llama_cpp, old.commit, old.date, old.machine)
    return results


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="PATTERN", help="Only rows with such a key; may be repeated.")
@click.option("--rounds", type=click.IntRange(0), default=5, show_default=True, help="0 shows what was kept.")
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--add", is_flag=True, help="Add to the rounds of this commit that were kept.")
@click.option("--prepare", is_flag=True, help="Prepare models, artifacts and llama.cpp, and measure nothing.")
@click.option("--list", "listed", is_flag=True, help="Print the rows' keys.")
@click.option("--json", "file", type=click.Path(path_type=Path), default=KEPT, show_default=True)
@click.option("--publish", "published", is_flag=True, help="Write the tables for docs/benchmarks.md.")
def main(
    only: tuple[str, ...],
    rounds: int,
    threads: int,
    add: bool,
    prepare: bool,
    listed: bool,
    file: Path,
    published: bool,
) -> None:
    """Measure, keep and print."""
    found = rows(threads)
    chosen = choose(found, only)
    if listed:
        click.echo("\n".join(f"{row.key:<28}{row.case}" for row in chosen))
        return
    for row in chosen if rounds else []:
        row.prepare()
    if prepare:
        return
    kept = llama_cpp_results.read(file)
    with click.progressbar(length=rounds * len(chosen), label="rows") as progress:
        for number in range(rounds):
            for row in chosen:
                row.measure(swapped=number % 2 == 1)
                progress.update(1)
                measured = [row for row in chosen if row.smc]  # an interrupted run keeps its results so far
                llama_cpp_results.write(file, merged(found, kept, measured, add=add))
    results = llama_cpp_results.read(file)
    click.echo(llama_cpp_results.markdown({row.key: results[row.key] for row in chosen if row.key in results}))
    if published:
        speeds = {key: row for key, row in results.items() if row.unit == "tokens/s"}
        publish("llama_cpp", llama_cpp_results.tables(speeds))


if __name__ == "__main__":
    main()
