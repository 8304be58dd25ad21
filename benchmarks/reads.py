"""What the memory system does at best: plain reads, each thread its own part, and a message from a CPU to another.

The limits beside which other readers, and barriers, are measured.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64, c_uint64, c_void_p, create_string_buffer
from pathlib import Path

from benchmarks.kernels import Memory, load_c, wall_seconds

SOURCE = Path(__file__).with_name("reads.c")
STEP = 256
"""Bytes of one turn of the loop."""

MESSAGES = 50_000
"""So many that threads which are still asleep count for nothing."""


class Reads:
    """The loops, compiled; with AVX-512 where the CPU has it."""

    def __init__(self) -> None:
        library = load_c(SOURCE, "-march=native")
        self._time_reads, self._time_messages = library.time_reads, library.time_messages
        self._time_reads.argtypes, self._time_reads.restype = [c_void_p, c_uint64, c_int64], c_int64
        self._time_messages.argtypes, self._time_messages.restype = [c_void_p, c_int64, c_int64], c_int64

    def seconds(self, pool: ThreadPoolExecutor, threads: int, memory: Memory, size: int, times: int = 1) -> float:
        """Of reading the first `size` bytes once, shared out among threads: the mean of `times` in a row."""
        part = max(1, size // threads // STEP) * STEP
        parts = [(memory.address + thread * part, part, times) for thread in range(threads)]
        return wall_seconds(pool, self._time_reads, parts) * size / (part * threads) / times

    def round_trip(self, pool: ThreadPoolExecutor) -> float:
        """Seconds from a thread of the pool to another and back, through a cache line each; two threads at least."""
        lines = create_string_buffer(512)
        return wall_seconds(pool, self._time_messages, [(lines, MESSAGES, second) for second in range(2)]) / MESSAGES
