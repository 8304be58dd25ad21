"""benchmarks.bandwidth and the plain reads beside it: what is reported, and one short run. No time is judged."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.bandwidth import Turn, main, phase_bytes, print_table
from benchmarks.kernels import Memory
from benchmarks.reads import STEP, Reads
from smc.runtime.profile import Profile, TaskProfile


def test_turns_are_listed_by_what_memory_gave(capsys: pytest.CaptureFixture[str]) -> None:
    turns = [
        Turn(decode=45e9, reads=60e9, phases=50e9),
        Turn(decode=27e9, reads=30e9, phases=30e9, round_trips=(2e-7, 1e-7)),
        Turn(decode=20e9, reads=40e9, phases=25e9, round_trips=(1e-7, 7e-7)),
    ]
    print_table(turns)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [
        ["30.0", "30.0", "27.0", "90.0%", "90.0%", "100", "ns"],
        ["40.0", "25.0", "20.0", "50.0%", "80.0%", "700", "ns"],
        ["60.0", "50.0", "45.0", "75.0%", "90.0%"],
    ]
    assert [" ".join(line) for line in lines[4:]] == [
        "medians",
        "40.0 (all) 30.0 27.0 75.0% 90.0% 3 turns",
        "30.0 (near) 30.0 27.0 90.0% 90.0% 1 turns",
    ]


def task(function: str, calls: int, bytes: int, wait: float = 0.0) -> TaskProfile:
    return TaskProfile(function, "name", "kernel", False, calls, calls, bytes, 0, 1.0, wait)


def test_phases_are_those_of_a_step() -> None:
    tasks = [
        task("embed", 2, 20, 0.1),
        task("block", 0, 0),  # made inside the next phase
        task("block", 6, 600, 0.1),
        task("block", 6, 300),  # in the same phase
        task("block", 6, 60, 0.1),
        task("block", 6, 1200, 0.1),
        task("head", 2, 1820, 0.1),
    ]
    profile = Profile(2, steps=2, tokens=2, seconds=1.0, claim_seconds=0.0, outside_seconds=0.0, tasks=tasks)
    layer = [300, 20, 400]
    assert phase_bytes(profile, 4000) == [20, *layer * 3, 1820]  # twice what the profile shows: weights alone count


@pytest.mark.parametrize("threads", [1, 3])
def test_reads_take_some_time(threads: int) -> None:
    memory, reads = Memory(7 * STEP), Reads()
    with ThreadPoolExecutor(threads) as pool:
        assert reads.seconds(pool, threads, memory, 7 * STEP, 2) > 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_steps_end_on_every_thread(threads: int) -> None:
    memory, reads = Memory(8 * STEP * threads), Reads()
    phases = [STEP * threads, 0, 5, 3 * STEP * threads]
    with ThreadPoolExecutor(threads) as pool:
        assert reads.step_seconds(pool, threads, memory, phases, 100, 5) > 0
        with pytest.raises(ValueError, match="does not fit"):
            reads.step_seconds(pool, threads, memory, [9 * STEP * threads], 100, 1)


def test_messages_are_answered() -> None:
    with ThreadPoolExecutor(2) as pool:
        assert Reads().round_trip(pool) > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_a_short_run(artifact: Path, threads: int, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--threads", str(threads), "--decode-tokens", "3", "--turns", "2", "--json", str(file)]
    result = CliRunner().invoke(main, [str(artifact), *arguments], catch_exceptions=False)
    assert result.exit_code == 0 and "2 turns" in result.output
    turns = json.loads(file.read_text(encoding="utf-8"))["turns"]
    assert len(turns) == 2
    for turn in turns:
        assert len(turn["round_trip_seconds"]) == (2 if threads > 1 else 0)
        assert turn["share"] == pytest.approx(turn["decode_bytes_per_s"] / turn["read_bytes_per_s"])
        assert turn["phase_share"] == pytest.approx(turn["decode_bytes_per_s"] / turn["phase_read_bytes_per_s"])


def test_an_artifact_that_is_not_there_is_said() -> None:
    result = CliRunner().invoke(main, ["nowhere.smc"])
    assert result.exit_code != 0
    assert "Error: " in result.output and "nowhere.smc" in result.output and "Traceback" not in result.output
