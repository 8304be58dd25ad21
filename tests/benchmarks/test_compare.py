"""benchmarks.compare: who competes, how rounds become ratios, and one short run. No time is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.compare import Settings, contenders, main, print_table

ONE, TWO = Path("one.smc"), Path("two.smc")


def test_names_say_what_differs() -> None:
    assert [c.name for c in contenders([ONE], [None], [2], ["f16"])] == ["one.smc"]
    assert [c.name for c in contenders([ONE], [None, "avx2"], [2], ["f16"])] == ["best level", "avx2"]
    found = contenders([ONE, TWO], ["avx2"], [1, 2], ["f16"])
    assert [c.name for c in found] == [
        "one.smc, 1 thread",
        "one.smc, 2 threads",
        "two.smc, 1 thread",
        "two.smc, 2 threads",
    ]
    assert found[3].settings == Settings(TWO, "avx2", 2, "f16")
    assert [c.name for c in contenders([ONE], [None], [1], ["f16", "i8"])] == ["f16", "i8"]


def test_a_ratio_is_of_one_round(capsys: pytest.CaptureFixture[str]) -> None:
    base, other = contenders([ONE, TWO], [None], [1], ["f16"])
    base.tokens_per_s["decode"] = [100.0, 200.0, 400.0]
    other.tokens_per_s["decode"] = [150.0, 220.0, 360.0]
    assert other.ratios(base, "decode") == pytest.approx([1.5, 1.1, 0.9])
    print_table([base, other], "decode", "decode 8")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["one.smc", "200.0"]
    assert lines[2].split() == ["two.smc", "220.0", "1.100×", "0.900", "–", "1.500"]


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, [*arguments, "--threads", "1"])
    return result.exit_code, result.output


def test_every_contender_has_a_figure_a_round(artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--level", "best", "--level", "floor", "--prompt-tokens", "20", "--decode-tokens", "4"]
    status, output = invoke(str(artifact), *arguments, "--depth", "3", "--rounds", "3", "--json", str(file))
    assert status == 0, output
    assert "prefill 20 @ 3" in output and "decode 4 @ 3" in output
    figures = json.loads(file.read_text(encoding="utf-8"))
    best, floor = figures["contenders"]
    for measure in ("prefill", "decode"):
        speeds = best["tokens_per_s"][measure], floor["tokens_per_s"][measure]
        assert [len(side) for side in speeds] == [3, 3]
        assert floor["ratios"][measure] == [own / base for base, own in zip(*speeds, strict=True)]


def test_what_cannot_be_measured_is_said(artifact: Path) -> None:
    for arguments, part in {
        (str(artifact), "--level", "never"): "never",
        ("nowhere.smc",): "nowhere.smc",
        (str(artifact), "--prompt-tokens", "0", "--decode-tokens", "0"): "nothing to measure",
    }.items():
        status, output = invoke(*arguments)
        assert status != 0
        assert "Error: " in output and part in output
        assert "Traceback" not in output
