"""What benchmarks.goals measured: kept as JSON, a row at a time, and written as Markdown."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BEGIN, END = "<!-- benchmarks.goals -->", "<!-- end of benchmarks.goals -->"


@dataclass(frozen=True)
class Result:
    """One row's figures of every round, and where they come from.

    unit: of `smc` and `llama_cpp`. Where both are in tokens/s the row's figure is their ratio, otherwise smc's own.
    goal: what the figure shall be at least, or with `at_most` at most; None where there is no goal.
    base: the key of a row that this one is also given as a multiple of: the same with less load or fewer threads.
    """

    key: str
    table: str
    case: str
    unit: str
    smc: list[float]
    llama_cpp: list[float]
    goal: float | None
    at_most: bool
    base: str | None
    commit: str
    date: str
    machine: str

    @property
    def figures(self) -> list[float]:
        """What is held against the goal, of every round."""
        if self.unit == "tokens/s" and self.llama_cpp:
            return [own / other for own, other in zip(self.smc, self.llama_cpp, strict=True)]
        return self.smc

    @property
    def figure(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.figures)

    @property
    def reached(self) -> bool | None:
        """Whether the median meets the goal; None without a goal."""
        if self.goal is None:
            return None
        return self.figure <= self.goal if self.at_most else self.figure >= self.goal


def read(path: Path) -> dict[str, Result]:
    """The results in a file, by key; none where there is no file."""
    if not path.is_file():
        return {}
    return {row["key"]: Result(**row) for row in json.loads(path.read_text(encoding="utf-8"))}


def write(path: Path, results: dict[str, Result]) -> None:
    """Put results into a file, in the order of the dictionary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps([asdict(row) for row in results.values()], indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def markdown(results: dict[str, Result]) -> str:
    """A table for each of the rows' `table`, and below which machine, day and commit the figures are of.

    Where not all are of one commit, a column names it.
    """
    if not results:
        return "Nothing was measured."
    commits = list(dict.fromkeys(row.commit for row in results.values()))
    mixed = len(commits) > 1
    parts = []
    for table in dict.fromkeys(row.table for row in results.values()):
        rows = [row for row in results.values() if row.table == table]
        lines = [
            f"| {table} | smc | llama.cpp | figure | lowest – highest | goal | |" + (" commit |" if mixed else ""),
            "|---|---|---|---|---|---|---|" + ("---|" if mixed else ""),
            *(_line(row, results) + (f" {row.commit} |" if mixed else "") for row in rows),
        ]
        parts.append("\n".join(lines))
    machines = "; ".join(dict.fromkeys(row.machine for row in results.values()))
    days = sorted({row.date for row in results.values()})
    span = " to ".join(dict.fromkeys([days[0], days[-1]]))
    parts.append(f"{machines}. Measured {span}{'' if mixed else f' at commit {commits[0]}'}.")
    return "\n\n".join(parts)


def _line(row: Result, results: dict[str, Result]) -> str:
    base = results.get(row.base or "")
    own = other = figure = spread = ""
    unit = "×" if row.unit == "tokens/s" else f" {row.unit}"
    if row.llama_cpp:
        own, other = _amount(row.smc, base.smc if base else []), _amount(row.llama_cpp, base.llama_cpp if base else [])
    if row.unit == "tokens/s" or not row.llama_cpp:
        figure, spread = _number(row.figure) + unit, f"{_number(min(row.figures))} – {_number(max(row.figures))}"
    goal = "" if row.goal is None else f"{'≤' if row.at_most else '≥'} {row.goal:g}{unit}"
    verdict = {True: "reached", False: "missed", None: ""}[row.reached]
    return (
        "|"
        + "|".join(f" {cell} " if cell else " " for cell in (row.case, own, other, figure, spread, goal, verdict))
        + "|"
    )


def _amount(values: Sequence[float], base: Sequence[float]) -> str:
    """The median, and in brackets as a multiple of the base's median."""
    median = statistics.median(values)
    return _number(median) + (f" ({median / statistics.median(base):.2f}×)" if base else "")


def _number(value: float) -> str:
    """Three digits that count."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the two marks of a Markdown file."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} lacks the lines {BEGIN} and {END}, between which the tables go")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
