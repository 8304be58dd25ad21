"""Profiles and limits from the engine: where the time of steps goes, and the limits of the machine."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int32, c_uint32, c_uint64
from dataclasses import dataclass


class ProfileTaskStruct(ctypes.Structure):
    """smc_profile_task."""

    _fields_ = [
        ("function", c_char_p),
        ("name", c_char_p),
        ("kernel", c_char_p),
        ("integer", c_int32),
        ("calls", c_uint64),
        ("pieces", c_uint64),
        ("bytes", c_uint64),
        ("macs", c_uint64),
        ("kernel_seconds", c_double),
        ("wait_seconds", c_double),
    ]


class ProfileStruct(ctypes.Structure):
    """smc_profile."""

    _fields_ = [
        ("size", c_uint32),
        ("threads", c_int32),
        ("task_count", c_int32),
        ("steps", c_uint64),
        ("tokens", c_uint64),
        ("seconds", c_double),
        ("claim_seconds", c_double),
        ("outside_seconds", c_double),
        ("tasks", POINTER(ProfileTaskStruct)),
    ]


class LimitsStruct(ctypes.Structure):
    """smc_limits."""

    _fields_ = [
        ("size", c_uint32),
        ("threads", c_int32),
        ("memory_bytes", c_double),
        ("weights_bytes", c_double),
        ("i8_macs", c_double),
        ("f32_macs", c_double),
    ]


@dataclass(frozen=True)
class TaskProfile:
    """A kernel at its place in the model, all layers together. Seconds are sums over all threads.

    integer: its multiply-adds (macs) are int8. calls: phases in which it had blocks; pieces: how often a thread took
    some of them. bytes: what it must read and write. wait_seconds: from each thread's last block until the barrier ends
    (for a phase's first task).
    """

    function: str
    name: str
    kernel: str
    integer: bool
    calls: int
    pieces: int
    bytes: int
    macs: int
    kernel_seconds: float
    wait_seconds: float


@dataclass(frozen=True)
class Profile:
    """The parts of steps: threads · seconds = kernels + waiting + claim_seconds + outside_seconds.

    claim_seconds: sharing out blocks, and the host program between phases. outside_seconds: checks and tables of a
    step, waking threads and idle ones. Both are sums over all threads.
    """

    threads: int
    steps: int
    tokens: int
    seconds: float
    claim_seconds: float
    outside_seconds: float
    tasks: list[TaskProfile]

    @classmethod
    def of(cls, struct: ProfileStruct) -> Profile:
        """A copy of the engine's structure."""
        tasks = [
            TaskProfile(
                function=task.function.decode("utf-8", "replace"),
                name=task.name.decode("utf-8", "replace"),
                kernel=task.kernel.decode("utf-8", "replace"),
                integer=bool(task.integer),
                calls=task.calls,
                pieces=task.pieces,
                bytes=task.bytes,
                macs=task.macs,
                kernel_seconds=task.kernel_seconds,
                wait_seconds=task.wait_seconds,
            )
            for task in struct.tasks[: struct.task_count]
        ]
        times = (struct.seconds, struct.claim_seconds, struct.outside_seconds)
        return cls(struct.threads, struct.steps, struct.tokens, *times, tasks)

    @property
    def kernel_seconds(self) -> float:
        """The time in kernels, summed over all threads."""
        return sum(task.kernel_seconds for task in self.tasks)

    @property
    def wait_seconds(self) -> float:
        """The time at barriers, summed over all threads."""
        return sum(task.wait_seconds for task in self.tasks)


@dataclass(frozen=True)
class Limits:
    """The machine's limits per second with this number of threads; 0 if unknown.

    memory_bytes: reading a buffer that no cache holds; weights_bytes: reading the model's weights again and again.
    i8_macs: multiply-adds of the level's int8 dot products in registers; f32_macs: of float32.
    """

    threads: int
    memory_bytes: float
    weights_bytes: float
    i8_macs: float
    f32_macs: float
