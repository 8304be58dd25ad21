"""Which feature levels the tests can run on this machine."""

from __future__ import annotations

from pathlib import Path

from smc.cli.doctor import read_cpuinfo
from smc.targets import find_target


def usable_levels() -> list[str]:
    """The levels of an artifact that this CPU can run."""
    _, features = read_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return [level.name for level in find_target("native").levels if set(level.features) <= features]
