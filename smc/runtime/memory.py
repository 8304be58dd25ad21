"""How much memory this process has used, and how much there is."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_memory_bytes() -> int:
    """The largest resident set that this process had, the interpreter included.

    From /proc where there is one: unlike getrusage's figure it does not begin with the parent's, before the exec.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_bytes() -> int:
    """Memory that programs may still take, by /proc/meminfo; 4 GiB where that can't be read."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        return int(facts["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return 4 << 30
