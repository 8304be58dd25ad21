"""benchmarks.daily with the counting program. No time is judged."""

from __future__ import annotations

from pathlib import Path

from benchmarks.daily import seconds_to_prompt, speeds
from smc.runtime import load
from tests.runtime.conftest import artifact, build_program, program

__all__ = ["artifact", "build_program", "program"]


def test_the_prompt_and_the_speeds_are_found(artifact: Path) -> None:
    assert seconds_to_prompt(artifact) > 0
    with load(artifact, context_length=500) as model:
        found = speeds(model, 8, 2)
    assert list(found) == ["free", "schema", "letters"]
    assert all(len(rates) == 2 and min(rates) > 0 for rates in found.values())
