"""Plain reads of memory, each thread its own half or third of it: the limit beside which other readers are measured."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64, c_uint64, c_void_p
from pathlib import Path

from benchmarks.kernels import Memory, load_c, wall_seconds

SOURCE = Path(__file__).with_name("reads.c")
STEP = 256
"""Bytes of one turn of the loop."""


class Reads:
    """The loop, compiled; with AVX-512 where the CPU has it."""

    def __init__(self) -> None:
        self._time_reads = load_c(SOURCE, "-march=native").time_reads
        self._time_reads.argtypes, self._time_reads.restype = [c_void_p, c_uint64, c_int64], c_int64

    def seconds(self, pool: ThreadPoolExecutor, threads: int, memory: Memory, size: int, times: int = 1) -> float:
        """Of reading the first `size` bytes once, shared out among threads: the mean of `times` in a row."""
        part = max(1, size // threads // STEP) * STEP
        parts = [(memory.address + thread * part, part, times) for thread in range(threads)]
        return wall_seconds(pool, self._time_reads, parts) * size / (part * threads) / times
