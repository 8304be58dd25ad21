"""The program that measures, with kernels whose times are known, under the sanitizers."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

import smc.runtime
from tests.runtime.engine.conftest import ENGINE, PLAIN, WARNINGS, compile_c, supports

TUNER = Path(smc.runtime.__file__).parent / "tuner"
SOURCES = [Path(__file__).parent / "fake_kernels.c", TUNER / "tuner.c", ENGINE / "cpu.c"]


@pytest.fixture(scope="module")
def tuner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tuner"))


def build(folder: Path, *flags: str) -> Path:
    sanitizers = ("-fsanitize=address,undefined",) if supports("address,undefined", folder) else ()
    return compile_c(folder / "tuner", SOURCES, f"-I{TUNER}", f'-DPLAIN="{PLAIN}"', *WARNINGS, *sanitizers, *flags)


def run(tuner: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(tuner), *map(str, arguments)]
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_records_of_the_levels_that_the_cpu_has(tuner: Path) -> None:
    done = run(tuner, "--seconds", 1)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^2/\d+ \(\d+ %, about \d+ s left\)  plain  linear_right ", done.stderr, re.MULTILINE)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["level"], r["kernel"]) for r in records] == [("plain", "linear_right")] * 2
    assert records[0]["workload"] == {"rows": 40, "columns": 96, "tokens": 3}
    for record in records:
        times = record["nanoseconds"]
        assert list(times) == ["1x32", "2x32", "4x32"]
        assert times["2x32"] < times["1x32"] < times["4x32"]  # once, three and eight times the work
        assert 2 < times["1x32"] / times["2x32"] < 4.5


def test_resume_leaves_out_what_is_there(tuner: Path, tmp_path: Path) -> None:
    first = run(tuner, "--seconds", 1).stdout.splitlines(keepends=True)
    records = tmp_path / "records.jsonl"
    assert json.loads(run(tuner, "--info", "--resume", records).stdout)["measurements"] == 2
    records.write_text(first[1])
    assert json.loads(run(tuner, "--info", "--resume", records).stdout)["measurements"] == 1
    again = run(tuner, "--seconds", 1, "--resume", records)
    assert [json.loads(line)["workload"]["columns"] for line in again.stdout.splitlines()] == [96]
    records.write_text("".join(first))
    nothing = run(tuner, "--resume", records)
    assert (nothing.returncode, nothing.stdout) == (0, "")


def test_a_candidate_that_computes_something_else_is_told_and_left_out(tmp_path: Path) -> None:
    done = run(build(tmp_path, "-DWRONG"), "--seconds", 1)
    assert done.returncode == 1
    assert "2x32 of linear_wrong on plain computes other results than 1x32" in done.stderr
    assert list(json.loads(done.stdout.splitlines()[-1])["nanoseconds"]) == ["1x32", "4x32"]


def test_info(tuner: Path) -> None:
    info = json.loads(run(tuner, "--info").stdout)
    assert (info["levels"], info["measurements"]) == (["plain"], 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--second", "3"], "'--second' is not an option"),
        (["--seconds"], "its value is missing"),
        (["--seconds", "0"], "'--seconds'"),
        (["--seconds", "3x"], "'--seconds'"),
        (["--level", "holodeck"], "by the name of holodeck"),
        (["--resume", "/"], "can't read /"),
    ],
)
def test_bad_options(tuner: Path, arguments: list[str], words: str) -> None:
    done = run(tuner, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_help(tuner: Path) -> None:
    done = run(tuner, "--help")
    assert done.returncode == 0 and "smc tune --import" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk(tuner: Path) -> None:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [str(tuner), "--seconds", "1"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert done.returncode == 2 and "can't write the record" in done.stderr
