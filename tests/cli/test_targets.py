"""`smc targets`."""

from __future__ import annotations

import json

import pytest

from smc.cli import main
from smc.targets import TARGETS


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["targets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == list(TARGETS)
    assert [level["name"] for level in listed["x86-64"]["levels"]] == ["avx512vnni", "avxvnni", "avx2"]
    assert "fma" in listed["x86-64"]["levels"][1]["features"]
    assert [level["name"] for level in listed["raspberry-pi-5"]["levels"]] == ["dotprod"]
    assert [name for name, target in listed.items() if not target["standalone"]] == [
        "arm64-macos", "apple-m1", "apple-m2",
    ]  # fmt: skip


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["targets"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in [*TARGETS, "native"])
    assert all(target.tested in output for target in TARGETS.values())
