"""docs/benchmarks.md and the README's table are what the results say, and short enough to read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import peers, publish, report
from benchmarks.publish import RESULTS, Table

ELSEWHERE = {"peers", "healing"}
"""Results that README and docs/training.md show."""


def test_the_page_is_made_from_the_results() -> None:
    assert report.PAGE.read_text(encoding="utf-8") == report.page()


def test_the_table_of_the_readme_is_made_from_the_results() -> None:
    assert report.README.read_text(encoding="utf-8") == report.readme()


@pytest.mark.parametrize("measured", [False, True])
def test_openvino_once_it_is_measured(measured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llama_cpp", "quality"):
        shutil.copy(RESULTS / f"{name}.json", tmp_path)
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    if measured:
        publish.publish("peers", [peers.table([("decode 64, tokens/s", [400.0, 220.0, 150.0])])])
    rows = [line.split(" | ")[1:4] for line in report.peers().splitlines() if line.startswith("| decode 64")]
    assert [row[2] for row in rows] == ["150" if measured else "not measured"]
    assert rows[0][:2] == ["400", "220"] or not measured


def test_the_page_is_short() -> None:
    assert len(report.page().splitlines()) <= 150


def test_every_result_has_a_section() -> None:
    names = [name for section in report.SECTIONS for name in section.names]
    assert sorted(names) == sorted(path.stem for path in RESULTS.glob("*.json") if path.stem not in ELSEWHERE)


def test_a_table_in_markdown() -> None:
    table = Table("a title", ["what", "smc"], [["decode", "400"], ["prefill", "2,000"]])
    assert table.markdown().splitlines() == [
        "**a title**", "", "| what | smc |", "| --- | ---: |", "| decode | 400 |", "| prefill | 2,000 |"
    ]  # fmt: skip
