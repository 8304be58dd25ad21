"""`smc passes` and `smc encodings`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smc.cli import main
from smc.passes import recipe_names, registered_passes


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["passes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("convert", "fuse-residual", "quantize-rtn", "untie", *recipe_names()):
        assert any(line.startswith(f"  {name} ") for line in lines)


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["passes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed["passes"]) == set(registered_passes())
    assert list(listed["recipes"]) == recipe_names()
    assert listed["passes"]["convert"]["options"]["dtype"] == {"takes": "f32 or f16 or bf16", "default": "f16"}


def test_one_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["passes", "quantize-rtn"]) == 0
    output = capsys.readouterr().out
    assert "Round weights to the nearest code" in output
    assert "  group             a whole number or row (default 32)\n" in output
    assert "needs torch" in output


def test_one_recipe_shows_passes_that_can_be_given_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["passes", "int4-plain"]) == 0
    assert "\n  -p quantize-rtn:bits=4,group=32,symmetric=yes," in capsys.readouterr().out


def test_a_pass_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from smc.passes import Pass, register\n\n"
        "@register('cli-test-pass')\n@dataclass(frozen=True)\nclass Mine(Pass):\n"
        "    '''Does nothing. times: how often.'''\n\n"
        "    times: int\n\n"
        "    def run(self, module, context):\n        return module\n"
    )
    assert main.run(["passes", f"{file}:cli-test-pass"]) == 0
    assert "times  a whole number (required)" in capsys.readouterr().out


def test_an_unknown_name_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["passes", "quantise-rtn"]) == 2
    assert "did you mean quantize-rtn?" in capsys.readouterr().err


def test_encodings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["encodings", "--group", "64", "--columns", "96", "--json"]) == 0
    listed = {row["encoding"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed["f16"]["bits_per_weight"] == 16
    # Two groups of 64 hold 96 columns: 128 codes, two scales, two zeros.
    assert listed["int4.g64.asymmetric"]["bits_per_weight"] == pytest.approx((128 * 4 + 2 * 20) / 96, abs=1e-4)
    # Five of 128 codes in a byte, and two scales.
    assert listed["base3.g64"]["bits_per_weight"] == pytest.approx((26 * 8 + 2 * 16) / 96, abs=1e-4)
    assert main.run(["encodings"]) == 0
    assert "int4.g32 " in capsys.readouterr().out
