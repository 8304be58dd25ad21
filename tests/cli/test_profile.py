"""`smc bench --profile`: what it tells adds up; the picture is a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from smc.cli.bench import bench
from smc.cli.profile import limits_report, profile_report, profile_table, thread_counts
from smc.errors import InputError
from smc.runtime.profile import Limits, Profile, TaskProfile
from smc.runtime.roofline import roofline_svg

SVG = "{http://www.w3.org/2000/svg}"

TASKS = {"function": str, "name": str, "kernel": str, "dtype": str}
NUMBERS = ["calls", "pieces", "us", "share", "wait_us", "bytes", "macs", "gb_per_s", "gmac_per_s"]


@pytest.fixture(scope="module")
def measured(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the command says of the counting artifact: JSON and SVG."""
    svg = tmp_path_factory.mktemp("profile") / "roofline.svg"
    arguments = ["--prompt-tokens", "40", "--decode-tokens", "6", "--depth", "3", "--repeat", "2", "--threads", "2"]
    command = [str(artifact), *arguments, "--profile", "--svg", str(svg), "--json"]
    return json.loads(CliRunner().invoke(bench, command, catch_exceptions=False).stdout), svg


def test_json(measured: tuple[dict[str, Any], Path]) -> None:
    report, _ = measured
    assert [limit["threads"] for limit in report["limits"]] == [1, 2]
    assert all(limit["memory_gb_per_s"] > 0 for limit in report["limits"])
    prefill, decode = report["profile"]["prefill"], report["profile"]["decode"]
    assert (prefill["steps"], prefill["tokens"], decode["steps"], decode["tokens"]) == (1, 40, 6, 6)
    for profile in (prefill, decode):
        whole = sum(profile[f"{part}_us"] for part in ("kernels", "barriers", "claims", "outside"))
        assert whole == pytest.approx(profile["step_us"])
        assert sum(task["us"] for task in profile["tasks"]) == pytest.approx(profile["kernels_us"])
        assert sum(task["wait_us"] for task in profile["tasks"]) == pytest.approx(profile["barriers_us"])
        assert sum(t["share"] for t in profile["tasks"]) == pytest.approx(1 - profile["outside_kernels_share"])
        assert profile["between_steps_us"] > 0
        assert profile["slowdown"] > -1
        for task in profile["tasks"]:
            assert all(isinstance(task[key], kind) for key, kind in TASKS.items())
            assert all(math.isfinite(task[key]) for key in NUMBERS)
    hidden, logits = decode["tasks"]
    assert (hidden["name"], hidden["calls"], hidden["bytes"]) == ("hidden", 1, 16 + 2 * 16 * 2)
    assert (logits["name"], logits["calls"], logits["bytes"], logits["macs"]) == ("logits", 1, 48, 259)
    assert logits["gmac_per_s"] == pytest.approx(logits["macs"] / logits["us"] / 1e3)
    assert (hidden["peak_share"], logits["limit_share"] > 0) == (None, True)
    assert prefill["tasks"][0]["calls"] == 3  # chunks of 16 tokens


def test_without_profile_nothing_is_told(artifact: Path) -> None:
    command = [str(artifact), "--prompt-tokens", "3", "--decode-tokens", "3", "--repeat", "1", "--json"]
    report = json.loads(CliRunner().invoke(bench, command, catch_exceptions=False).stdout)
    assert "profile" not in report
    assert "limits" not in report


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_no_folder_for_the_picture(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't write the drawing to .*x\.svg: name a file in a folder that exists"):
        CliRunner().invoke(bench, [str(artifact), "--svg", str(tmp_path / "no" / "x.svg")], catch_exceptions=False)


def test_a_file_that_is_no_drawing_stays(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="notes exists and holds something else than the drawing"):
        CliRunner().invoke(bench, [str(artifact), "--svg", str(tmp_path / "notes")], catch_exceptions=False)
    assert (tmp_path / "notes").read_text() == "mine"


def test_svg_of_a_run(measured: tuple[dict[str, Any], Path]) -> None:
    assert {"prefill after 3 tokens", "decode after 3 tokens"} <= set(texts(measured[1].read_text("utf-8")))


def task(name: str, macs: int, kernel_seconds: float, **changes: Any) -> TaskProfile:
    values = {"function": "block", "kernel": f"linear {name}", "integer": True, "calls": 20, "pieces": 40}
    return TaskProfile(**{**values, "name": name, "macs": macs, "bytes": 10**9, "kernel_seconds": kernel_seconds,
                          "wait_seconds": 0.1, **changes})  # fmt: skip


LIMITS = [Limits(1, 50e9, 0.0, 500e9, 100e9), Limits(2, 80e9, 100e9, 1000e9, 200e9)]
# Two threads, 10 steps of 0.1 s: 2 thread-seconds.
PROFILE = Profile(2, 10, 10, 1.0, 0.05, 0.25, [
    task("q <&> k", 10**10, 1.0),
    task("attention", 2 * 10**9, 0.4, integer=False),
    task("norm", 0, 0.1, wait_seconds=0.0, integer=False),
    task("unused", 0, 0.0, calls=0, pieces=0, bytes=0, wait_seconds=0.0),
])  # fmt: skip


def by_hand() -> dict[str, Any]:
    profile = profile_report(1.1, PROFILE, LIMITS[-1], 1.0)
    head = {"artifact": "a<b>.smc", "threads": 2, "level": "best", "depth": 0}
    return {**head, "limits": limits_report(LIMITS), "profile": {"decode": profile}}


def test_figures_by_hand() -> None:
    profile = by_hand()["profile"]["decode"]
    parts = [profile[f"{part}_us"] for part in ("step", "kernels", "barriers", "claims", "outside")]
    assert parts == pytest.approx([100e3, 75e3, 10e3, 2.5e3, 12.5e3])
    assert profile["outside_kernels_share"] == pytest.approx(0.25)
    assert profile["between_steps_us"] == pytest.approx(10e3)
    assert profile["slowdown"] == pytest.approx(0.1)
    linear, attention, norm, unused = profile["tasks"]
    # One thread-second is half a second of both: 2 GB/s and 20 GMAC/s, of 100 and 1000 (float32: 200).
    assert [linear[k] for k in ("us", "share", "gb_per_s", "gmac_per_s", "limit_share", "peak_share")] == pytest.approx(
        [50e3, 0.5, 2.0, 20.0, 0.02, 0.02]
    )
    assert attention["peak_share"] == pytest.approx(0.05)
    assert (norm["peak_share"], unused["gb_per_s"]) == (None, 0.0)


def test_table_by_hand() -> None:
    lines = profile_table("decode", by_hand()["profile"]["decode"]).splitlines()
    assert lines[0] == "decode: 10 steps, 100,000.0 µs each (+10.0 % by profiling)"
    cells = lines[2].split()
    assert " ".join(cells[-11:]) == "2 50,000.0 50.0 % 2.0 2.0 % 20.0 2.0 % 5,000.0"
    assert not any("unused" in line for line in lines)
    assert lines[-1] == "  outside kernels: 25.0 % of a step"


def test_svg_by_hand() -> None:
    svg = roofline_svg(by_hand())
    assert svg == roofline_svg(by_hand())
    found = texts(svg)
    assert "a<b>.smc: 2 threads, level best" in found
    assert "q <&> k 50.0 %, 2.0 GB/s, 20 GMAC/s" in found
    root = ElementTree.fromstring(svg)
    circles = list(root.iter(f"{SVG}circle"))
    assert len(circles) == 2  # those that multiply
    (x, y), (other_x, other_y) = ((float(c.get("cx", "")), float(c.get("cy", ""))) for c in circles)
    assert (x > other_x, y < other_y) == (True, True)  # 10 and 2 multiply-adds per byte, 20 and 10 GMAC/s
    bars = [float(bar.get("width", "")) for bar in root.iter(f"{SVG}rect") if bar.get("height") == "20"]
    assert bars[0] == pytest.approx(sum(bars) / 2, rel=1e-3)  # half of a step


def test_svg_where_limits_are_unknown() -> None:
    report = by_hand()
    report["limits"] = limits_report([Limits(2, 0.0, 0.0, 0.0, 0.0)])
    assert "int8 0 GMAC/s" not in texts(roofline_svg(report))
    assert profile_report(1.0, PROFILE, Limits(2, 0.0, 0.0, 0.0, 0.0), 1.0)["tasks"][0]["limit_share"] is None


def test_thread_counts() -> None:
    assert [thread_counts(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]
