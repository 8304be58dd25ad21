"""How much memory this process has used, and how much is available."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_memory_bytes() -> int:
    """The largest resident set that this process had, the interpreter included.

    From /proc if there is one: unlike getrusage's figure it does not include the parent's memory before the exec.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_bytes() -> int:
    """The available memory, from /proc/meminfo; 4 GiB if that can't be read."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        return int(facts["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return 4 << 30
