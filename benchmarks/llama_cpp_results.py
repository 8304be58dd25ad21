"""What benchmarks.llama_cpp measured: kept as JSON, one row at a time, and shown as tables."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.publish import Table


@dataclass(frozen=True)
class Result:
    """One row's figures of every round, and where they come from.

    unit: of `smc` and `llama_cpp`. Where both are in tokens/s the row's figure is their ratio, otherwise smc's own.
    base: the key of a row that this one is also given as a multiple of: the same with less load or fewer threads.
    """

    key: str
    table: str
    case: str
    unit: str
    smc: list[float]
    llama_cpp: list[float]
    base: str | None
    commit: str
    date: str
    machine: str

    @property
    def figures(self) -> list[float]:
        """The row's figure in every round."""
        if self.unit == "tokens/s" and self.llama_cpp:
            return [own / other for own, other in zip(self.smc, self.llama_cpp, strict=True)]
        return self.smc

    @property
    def figure(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.figures)


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


def tables(results: dict[str, Result]) -> list[Table]:
    """A table for each of the rows' `table`. Where not all rows are of one commit, a column names it."""
    mixed = len({row.commit for row in results.values()}) > 1
    columns = ["smc", "llama.cpp", "ratio", "lowest – highest", *["commit"] * mixed]
    return [
        Table("", [name, *columns], [_cells(row, results) + [row.commit] * mixed for row in rows])
        for name in dict.fromkeys(row.table for row in results.values())
        if (rows := [row for row in results.values() if row.table == name])
    ]


def markdown(results: dict[str, Result]) -> str:
    """The tables in Markdown."""
    return "\n\n".join(table.markdown() for table in tables(results)) or "Nothing was measured."


def _cells(row: Result, results: dict[str, Result]) -> list[str]:
    base = results.get(row.base or "")
    unit = "×" if row.unit == "tokens/s" else f" {row.unit}"
    spread = f"{_number(min(row.figures))} – {_number(max(row.figures))}" if len(row.figures) > 1 else ""
    if not row.llama_cpp:
        return [row.case, _number(row.figure) + unit, "", "", spread]
    own, other = _amount(row.smc, base.smc if base else []), _amount(row.llama_cpp, base.llama_cpp if base else [])
    if row.unit != "tokens/s":
        return [row.case, own, other, "", ""]
    return [row.case, own, other, _number(row.figure) + unit, spread]


def _amount(values: Sequence[float], base: Sequence[float]) -> str:
    """The median, and in brackets as a multiple of the base's median."""
    median = statistics.median(values)
    return _number(median) + (f" ({median / statistics.median(base):.2f}×)" if base else "")


def _number(value: float) -> str:
    """Three digits that count."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"
