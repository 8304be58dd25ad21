"""docs/benchmarks.md is what the results say, and short enough to read."""

from __future__ import annotations

from benchmarks import report
from benchmarks.publish import RESULTS, Table


def test_the_page_is_made_from_the_results() -> None:
    assert report.PAGE.read_text(encoding="utf-8") == report.page()


def test_the_page_is_short() -> None:
    assert len(report.page().splitlines()) <= 150


def test_every_result_has_a_section() -> None:
    names = [name for section in report.SECTIONS for name in section.names]
    assert sorted(names) == sorted(path.stem for path in RESULTS.glob("*.json"))


def test_a_table_in_markdown() -> None:
    table = Table("a title", ["what", "smc"], [["decode", "400"], ["prefill", "2,000"]])
    assert table.markdown().splitlines() == [
        "**a title**", "", "| what | smc |", "| --- | ---: |", "| decode | 400 |", "| prefill | 2,000 |"
    ]  # fmt: skip
