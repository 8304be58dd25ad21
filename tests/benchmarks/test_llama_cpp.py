"""benchmarks.llama_cpp: which rows there are, how their figures become tables. Nothing is timed here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click
import pytest

from benchmarks import llama_cpp, llama_cpp_results, llama_cpp_rows
from benchmarks.llama_cpp_results import Result
from benchmarks.llama_cpp_rows import Bandwidth, OutsideKernels, Speed, busy_programs
from benchmarks.speed import Case

SPEED = Result(
    key="decode",
    table="speed",
    case="a decode",
    unit="tokens/s",
    smc=[300.0, 400.0, 500.0],
    llama_cpp=[100.0, 200.0, 200.0],
    base=None,
    commit="abcdef0",
    date="2026-11-22",
    machine="a machine",
)
SHARE = dataclasses.replace(SPEED, key="share", case="a share", unit="%", smc=[7.5], llama_cpp=[])


def line(result: Result, *others: Result) -> str:
    """The row of a result in its table."""
    text = llama_cpp_results.markdown({row.key: row for row in (result, *others)})
    return next(line for line in text.splitlines() if f"| {result.case} |" in line)


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    assert SPEED.figures == [3.0, 2.0, 2.5]
    assert SPEED.figure == 2.5
    assert line(SPEED) == "| a decode | 400 | 200 | 2.50× | 2.00 – 3.00 |"


def test_a_share_has_no_peer() -> None:
    assert line(SHARE) == "| a share | 7.50 % |  |  |  |"


def test_other_units_show_both_sides_and_no_ratio() -> None:
    quality = dataclasses.replace(SPEED, unit="nats", smc=[0.151], llama_cpp=[0.0482])
    assert line(quality) == "| a decode | 0.15 | 0.048 |  |  |"


def test_a_base_makes_multiples_of_both_sides() -> None:
    more = dataclasses.replace(SPEED, key="more", case="more threads", base="decode", smc=[600.0] * 3)
    assert line(more, SPEED).startswith("| more threads | 600 (1.50×) | 200 (1.00×) |")
    assert line(more).startswith("| more threads | 600 | 200 |")  # the base was not measured


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "llama_cpp.json"
    assert llama_cpp_results.read(file) == {}
    results = {"decode": SPEED, "share": SHARE}
    llama_cpp_results.write(file, results)
    assert llama_cpp_results.read(file) == results


def test_nothing_kept_is_said() -> None:
    assert llama_cpp_results.markdown({}) == "Nothing was measured."


def test_several_commits_stand_in_the_rows() -> None:
    later = dataclasses.replace(SHARE, commit="1234567", date="2026-11-23")
    assert line(SPEED, later).endswith("| abcdef0 |")
    assert line(later, SPEED).endswith("| 1234567 |")
    assert "commit" not in llama_cpp_results.markdown({"decode": SPEED, "share": SHARE})


def test_every_row_has_its_own_key_and_case() -> None:
    found = llama_cpp.rows(2)
    assert len({row.key for row in found}) == len(found)
    assert len({(row.table, row.case) for row in found}) == len(found)
    assert {row.base for row in found} - {None} <= {row.key for row in found}


def test_rows_do_not_share_figures() -> None:
    found = [row for row in llama_cpp.rows(2) if isinstance(row, Speed)]
    found[0].smc.append(1.0)
    assert not any(row.smc for row in found[1:])


def test_rows_are_chosen_by_pattern() -> None:
    found = llama_cpp.rows(2)
    assert [row.key for row in llama_cpp.choose(found, ("batch-*", "avx2-decode"))] == [
        "avx2-decode", "batch-1", "batch-4", "batch-8"
    ]  # fmt: skip
    assert llama_cpp.choose(found, ()) == found
    with pytest.raises(click.BadParameter):
        llama_cpp.choose(found, ("nothing",))


def test_measured_rows_replace_kept_ones_in_the_order_of_all_rows() -> None:
    found = llama_cpp.rows(2)
    kept = {key: dataclasses.replace(SPEED, key=key) for key in ("batch-1", "smollm2-decode", "row of another time")}
    measured = next(row for row in found if row.key == "batch-1")
    measured.smc.append(7.0)
    results = llama_cpp.merged(found, kept, [measured])
    assert list(results) == ["smollm2-decode", "batch-1"]
    assert results["batch-1"].smc == [7.0]


def test_rounds_may_be_added_to_those_of_the_same_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp.inputs, "commit", lambda: SPEED.commit)
    found = llama_cpp.rows(2)
    measured = next(row for row in found if row.key == "batch-1")
    measured.smc.append(7.0)
    measured.llama_cpp.append(3.5)
    kept = {"batch-1": dataclasses.replace(SPEED, key="batch-1")}
    assert llama_cpp.merged(found, kept, [measured], add=True)["batch-1"].smc == [300.0, 400.0, 500.0, 7.0]
    kept = {"batch-1": dataclasses.replace(SPEED, key="batch-1", commit="another")}
    assert llama_cpp.merged(found, kept, [measured], add=True)["batch-1"].smc == [7.0]


@pytest.mark.slow
def test_outside_kernels_is_a_percentage_of_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"profile": {"decode": {"outside_kernels_share": 0.0736}}}
    monkeypatch.setattr(llama_cpp_rows, "run_json", lambda command: report)
    row = OutsideKernels("outside", llama_cpp.SMOLLM2, 2)
    row.measure(swapped=False)
    assert row.smc == pytest.approx([7.36])


@pytest.mark.slow
def test_a_share_of_the_bandwidth_is_the_median_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, quiet: bool) -> None:
        turns = [{"share": share, "phase_share": share + 0.1} for share in (0.9, 0.5, 0.8)]
        Path(command[command.index("--json") + 1]).write_text(json.dumps({"turns": turns}), encoding="utf-8")

    monkeypatch.setattr(llama_cpp_rows.peer, "run", run)
    row = Bandwidth("bandwidth", llama_cpp.SMOLLM2, 25)
    row.measure(swapped=True)
    assert row.smc == pytest.approx([80.0])
    row = Bandwidth("phases", llama_cpp.SMOLLM2, 2, phases=True)
    row.measure(swapped=True)
    assert row.smc == pytest.approx([90.0])


def test_sequences_are_part_of_a_cases_name() -> None:
    assert Case("decode", 32, 16, 4).name == "decode 32 @ 16, 4 sequences"
    assert Case("decode", 32).name == "decode 32"


def test_busy_programs_end_with_the_block() -> None:
    import psutil

    before = set(psutil.Process().children())
    with busy_programs(1):
        started = set(psutil.Process().children()) - before
        assert len(started) == 1
    assert not any(program.is_running() for program in started)
