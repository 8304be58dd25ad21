"""Plain progress lines, as they appear where standard error is no terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest

from smc.cli import messages
from smc.cli.progress import StageProgress


def test_stages_are_timed_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    with StageProgress() as progress:
        progress.update("read", 0)
        progress.update("pack", 0.5)
        progress.note("half way")
        progress.update("pack", 1)
        progress.update("pack", 1)
        progress.update("link", 0)
    assert list(progress.seconds) == ["read", "pack", "link"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["read", "half way", "pack", "link"]


def test_long_stages_say_how_far_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    with StageProgress() as progress:
        progress.update("write weights", 0)
        for seconds in range(1, 41):
            now = 100.0 + seconds
            progress.update("write weights", seconds / 80)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["write weights: 12 %, about 70 s left", "write weights: 25 %, about 60 s left"]
    assert lines[4:] == ["write weights: 40.0 s"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("still", [False, True])
def test_bar_has_percent_and_time_left(monkeypatch: pytest.MonkeyPatch, still: bool) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", terminal)
    with StageProgress(still=still) as progress:
        progress.update("link", 0.25)
        progress.update("link", 0.5)
        assert progress._bar is not None
        progress._bar.refresh()
    shown = re.sub("\x1b\\[[^A-Za-z]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(r"link .* 50% \d+:\d\d:\d\d left (-:--:--|\d+:\d\d:\d\d)", shown)


def test_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_level", messages.QUIET)
    with StageProgress() as progress:
        progress.update("read", 0)
        progress.note("half way")
        progress.update("read", 1)
    assert list(progress.seconds) == ["read"]
    assert capsys.readouterr().err == ""


def test_stage_that_failed_is_not_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with StageProgress() as progress:
            progress.update("read", 0)
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert capsys.readouterr().err == ""
