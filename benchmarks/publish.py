"""The tables of docs/benchmarks.md as data: one JSON file per benchmark in benchmarks/results/.

A benchmark's `--publish` writes its file; `python -m benchmarks.report` makes the page from all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from benchmarks import inputs

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; `title` may be empty."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table in Markdown; numbers, the columns after the first, are aligned to the right."""
        rule = ["---"] + ["---:"] * (len(self.columns) - 1)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows)]
        return "\n".join(([f"**{self.title}**", ""] if self.title else []) + lines)


@dataclass(frozen=True)
class Published:
    """The tables of one benchmark, and where they come from."""

    commit: str
    date: str
    machine: str
    tables: list[Table]


def publish(name: str, tables: Sequence[Table]) -> None:
    """Write the tables of a benchmark, measured now on this machine."""
    published = Published(inputs.commit(), date.today().isoformat(), inputs.machine(), list(tables))
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(asdict(published), indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def read(name: str) -> Published:
    """What a benchmark published."""
    kept = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return Published(**{**kept, "tables": [Table(**table) for table in kept["tables"]]})
