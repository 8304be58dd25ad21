"""Decoding beside llama.cpp, apart by how near the CPUs are to each other: for virtual machines, which move about.

    python -m benchmarks.placement [--only 'tinyllama*'] [--rounds 15] [--json FILE]

CPUs of one core complex share a cache and a way to memory, and answer each other soon; on two complexes they have twice
of both and wait longer at barriers. A host may move a virtual machine's CPUs between the two, so that medians over all
rounds say as much about the host as about a program. Rows are those of benchmarks.llama_cpp that decode. In every round
both programs run, and before, between and behind them a message goes from one CPU to another and back. Rounds in which
all took less than 300 ns are "near", those in which all took more "far". The others, in which the CPUs moved, are left
out.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click

from benchmarks import inputs, llama_cpp
from benchmarks.llama_cpp_rows import Bandwidth, Row, Speed
from benchmarks.reads import PLACES, Reads, place


@dataclass
class Figures:
    """Of the rounds with one placement: tokens/s of both programs; of shares, those of smc."""

    smc: list[float] = field(default_factory=list)
    llama_cpp: list[float] = field(default_factory=list)

    def cells(self) -> str:
        """Rounds, medians, and of the ratios lowest and highest, as cells of a table."""
        if not self.smc:
            return "0 | | |"
        if not self.llama_cpp:
            return f"{len(self.smc)} | | {statistics.median(self.smc):.1f} % |"
        ratios = [own / other for own, other in zip(self.smc, self.llama_cpp, strict=True)]
        speeds = f"{statistics.median(self.smc):.0f} / {statistics.median(self.llama_cpp):.0f}"
        spread = f"{min(ratios):.2f} – {max(ratios):.2f}"
        return f"{len(ratios)} | {speeds} | {statistics.median(ratios):.2f}× ({spread}) |"


def measure_round(row: Row, swapped: bool, round_trip: Callable[[], float]) -> str | None:
    """Add a round to the row; returns where the CPUs were."""
    trips = [round_trip()]
    row.measure(swapped=swapped, between=lambda: trips.append(round_trip()))
    trips.append(round_trip())
    return place(trips)


def measure(rows: Sequence[Row], rounds: int) -> dict[str, dict[str, Figures]]:
    """Figures by the row's key and the place."""
    found = {row.key: {name: Figures() for name in PLACES} for row in rows}
    reads = Reads()
    with (
        ThreadPoolExecutor(2) as pool,
        click.progressbar(length=rounds * len(rows), label="rows") as progress,
    ):
        for number in range(rounds):
            for row in rows:
                if where := measure_round(row, number % 2 == 1, lambda: reads.round_trip(pool)):
                    figures = found[row.key][where]
                    figures.smc += row.smc[-1:]
                    figures.llama_cpp += row.llama_cpp[-1:]
                progress.update(1)
    return found


def markdown(rows: Sequence[Row], found: dict[str, dict[str, Figures]]) -> str:
    """A table, one line per row."""
    lines = [
        "| | CPUs near: rounds | smc / llama.cpp | figure | CPUs far: rounds | smc / llama.cpp | figure |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(f"| {row.case} | {' '.join(found[row.key][name].cells() for name in PLACES)}")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="PATTERN", help="Only rows with such a key; may be repeated.")
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures there too.")
def main(only: tuple[str, ...], rounds: int, file: Path | None) -> None:
    """Measure with two threads, and print the table."""
    if len(os.sched_getaffinity(0)) < 2:
        raise click.ClickException("this takes two CPUs")
    decoding = [row for row in llama_cpp.rows(2) if row.table == "speed" and _decodes(row)]
    rows = llama_cpp.choose(decoding, only)
    for row in rows:
        row.prepare()
    found = measure(rows, rounds)
    click.echo(markdown(rows, found))
    click.echo(f"\n{inputs.machine()}. Measured at commit {inputs.commit()}.")
    if file:
        report = {
            key: {name: dataclasses.asdict(some) for name, some in places.items()} for key, places in found.items()
        }
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _decodes(row: Row) -> bool:
    return isinstance(row, Bandwidth) or (isinstance(row, Speed) and "decode" in row.key)


if __name__ == "__main__":
    main()
