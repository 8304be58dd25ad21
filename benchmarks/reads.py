"""What the memory system does at best: plain reads, alone or as steps of phases, and a message from a CPU to another.

The limits beside which other readers, and barriers, are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64, c_uint64, c_void_p, create_string_buffer
from pathlib import Path

from benchmarks.kernels import Memory, load_c, wall_seconds
from smc.codegen.cpu.link import engine_folder
from smc.ir import ceil_div

SOURCE = Path(__file__).with_name("reads.c")
STEP = 256
"""Bytes of one turn of the loop."""

MESSAGES = 50_000
"""So many that threads which are still asleep count for nothing."""

NEAR_SECONDS = 300e-9
PLACES = ("near", "far")


def place(trips: Sequence[float]) -> str | None:
    """Where the CPUs were in a round with such seconds of round trips. None: they moved."""
    far = {trip >= NEAR_SECONDS for trip in trips}
    return PLACES[far.pop()] if len(far) == 1 else None


class Reads:
    """The loops, compiled; with AVX-512 where the CPU has it."""

    def __init__(self) -> None:
        library = load_c(SOURCE, "-march=native", str(engine_folder() / "cpu.c"))
        self._time_reads, self._time_messages = library.time_reads, library.time_messages
        self._time_reads.argtypes, self._time_reads.restype = [c_void_p, c_uint64, c_int64], c_int64
        self._time_messages.argtypes, self._time_messages.restype = [c_void_p, c_int64, c_int64], c_int64
        vector, count = [c_void_p, c_uint64], [c_void_p, c_int64]
        self._time_steps, self._time_steps.restype = library.time_steps, c_int64
        self._time_steps.argtypes = [c_void_p, *count, *vector, *count, c_int64, c_int64]

    def seconds(self, pool: ThreadPoolExecutor, threads: int, memory: Memory, size: int, times: int = 1) -> float:
        """Of reading the first `size` bytes once, shared out among threads: the mean of `times` in a row."""
        part = max(1, size // threads // STEP) * STEP
        parts = [(memory.address + thread * part, part, times) for thread in range(threads)]
        return wall_seconds(pool, self._time_reads, parts) * size / (part * threads) / times

    def step_seconds(
        self, pool: ThreadPoolExecutor, threads: int, memory: Memory, phases: Sequence[int], width: int, times: int
    ) -> float:
        """Of a step that reads so many bytes in each of its phases, and nothing twice: the mean of `times` in a row.

        The threads share out each phase's bytes, and a vector of `width` bytes goes from every phase to the next,
        through all threads: what they wait for and read of each other is counted.
        """
        whole = STEP * threads
        sizes = [max(1, round(size / whole)) * whole for size in phases]
        width = ceil_div(width, whole) * whole
        if sum(sizes) > memory.size:
            raise ValueError(f"a step of {sum(sizes)} bytes does not fit the memory of {memory.size}")
        exchange, lines = Memory(2 * width), create_string_buffer(256 * threads)
        array = (c_uint64 * len(sizes))(*sizes)
        shared = (memory.address, array, len(sizes), exchange.address, width, lines, threads)
        seconds = wall_seconds(pool, self._time_steps, [(*shared, thread, times) for thread in range(threads)])
        return seconds * sum(phases) / sum(sizes) / times

    def round_trip(self, pool: ThreadPoolExecutor) -> float:
        """Seconds from a thread of the pool to another and back, through a cache line each; two threads at least."""
        lines = create_string_buffer(512)
        return wall_seconds(pool, self._time_messages, [(lines, MESSAGES, second) for second in range(2)]) / MESSAGES
