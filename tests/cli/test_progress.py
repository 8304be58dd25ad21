"""Plain progress lines, as they appear where standard error is no terminal."""

from __future__ import annotations

import pytest

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


def test_stage_that_failed_is_not_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with StageProgress() as progress:
            progress.update("read", 0)
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert capsys.readouterr().err == ""
