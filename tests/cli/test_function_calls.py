"""`smc run --functions` with the counting program, which has no say in what it calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smc.cli import main

SOURCE = 'def light(on: bool, level: Literal[1, 2]):\n    """Switch it."""\n    raise SystemExit\n'


def test_a_call_is_printed(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "home.py").write_text(SOURCE)
    command = ["run", str(artifact), "x", "--functions", str(tmp_path / "home.py"), "--ctx", "2000", "-q"]
    assert main.run([*command, "--must-call", "-n", "1500", "--temperature", "1", "--seed", "1"]) == 0
    calls = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert calls and {call["name"] for call in calls} == {"light"}
    assert all(isinstance(call["arguments"]["on"], bool) for call in calls)
    assert main.run([*command, "-n", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["calls"] == [] and answer["seconds"] > 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--must-call"], "--must-call needs --functions"),
        (["--functions", "missing.py"], "missing.py can't be read"),
        (["--functions", "home.py", "--raw"], "leave --raw away"),
    ],
)
def test_bad_input(artifact: Path, options: list[str], named: str, capsys: pytest.CaptureFixture[str]):
    assert main.run(["run", str(artifact), "x", *options]) == 2
    assert named in capsys.readouterr().err
