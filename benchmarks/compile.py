"""How long compiling takes, how much memory it needs, how big the program gets; loading and starting times.

    python -m benchmarks.compile [--only NAME]… [--json FILE]

`smollm2`           int4, cold and warm object cache
`smollm2-widths`    30 different FFN widths, every layer with its own mix of 4- and 8-bit matrices, cold
`tinyllama`         1.1 billion random weights in TinyLlama's shape, int4, cold
`start`             `smc --help`, `import smc`, and loading an artifact

Memory is the peak of the whole process tree, sampled 20 times a second: the sum of the processes' proportional set
sizes, in which a page that several share counts once. A cold cache is an empty folder.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil

from benchmarks import inputs, models


@dataclass
class Run:
    """One run of a command: wall-clock seconds and the process tree's peak memory in bytes."""

    seconds: float
    peak_bytes: int


def run(command: list[str], environment: dict[str, str] | None = None) -> Run:
    """Run a command to its end while sampling its memory."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | (environment or {}), stdout=subprocess.DEVNULL)
    peak = 0
    finished = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not finished.wait(0.05):
            peak = max(peak, tree_bytes(process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    status = process.wait()
    seconds = time.perf_counter() - start
    finished.set()
    sampler.join()
    if status:
        raise SystemExit(f"this command failed: {' '.join(command)}")
    return Run(seconds, peak)


def tree_bytes(pid: int) -> int:
    """Proportional set size of a process and all its descendants, in bytes."""
    total = 0
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except (OSError, ValueError):  # it has just ended
            continue
        total += 1024 * next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return total


def program_bytes(artifact: Path) -> int:
    """Size of the machine code member of an artifact."""
    with zipfile.ZipFile(artifact) as file:
        return file.getinfo("program.so").file_size
