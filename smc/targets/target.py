"""The dataclasses that describe machines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """What one build of the kernels needs from a machine.

    family: fixes the packed layout of weights ("x86", "arm64", "cuda"). features: what the engine checks before it runs
    the level: for CPUs LLVM's names, all of which it needs; for GPUs the architecture.
    """

    name: str
    family: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class CpuLevel(Level):
    """A set of CPU features.

    lanes: float32 lanes of a vector register, registers: how many there are.
    schedule: an LLVM CPU whose pipeline orders the instructions, and which has no feature that the floor lacks; empty
    for a CPU that LLVM doesn't know. matmul_schedule: the same for matmuls.
    source_order: instructions stay in the order of the kernel's text; with few registers LLVM would otherwise compute
    one sum after another, each a chain of dependent instructions.
    dot: which instruction multiplies int8 ("vpdpbusd", "vpmaddubsw", "smull", "sdot", "smmla");
    codegen/cpu/kernels/dot.py knows them.
    """

    lanes: int
    registers: int
    dot: str
    schedule: str = ""
    matmul_schedule: str = ""
    source_order: bool = False


@dataclass(frozen=True)
class GpuLevel(Level):
    """An architecture of GPUs, by its number (compute capability times 10). ptx: whether the code is PTX, which the
    driver compiles for any later GPU when an artifact is loaded; else it is machine code for GPUs of the same
    generation."""

    architecture: int
    ptx: bool = False


@dataclass(frozen=True)
class Target:
    """A kind of machine: where programs run, how they are linked, which levels an artifact carries (best first).

    machine, system: what `platform.machine()` and `platform.system()` return there. llvm_triple: for kernels.
    zig_target: for the engine and the link, with the oldest C library that it supports.
    executable_target: the same for a static executable; None if the target has none.
    tested: what was run, and where, for people to read.
    cpu: the CPU whose tuning records fit best, by LLVM's name; None for a target of many CPUs.
    backend: the name of its backend in smc/codegen/backends.py.
    The last level is the floor: a CPU without it can't run the artifact. All levels are of one family.
    """

    name: str
    description: str
    machine: str
    system: str
    llvm_triple: str
    zig_target: str
    executable_target: str | None
    levels: tuple[Level, ...]
    tested: str
    cpu: str | None = None
    backend: str = "cpu"

    @property
    def cpu_levels(self) -> tuple[CpuLevel, ...]:
        """The levels of a CPU; none for another kind of device."""
        return tuple(level for level in self.levels if isinstance(level, CpuLevel))

    @property
    def gpu_levels(self) -> tuple[GpuLevel, ...]:
        """The levels of GPUs."""
        return tuple(level for level in self.levels if isinstance(level, GpuLevel))

    @property
    def family(self) -> str:
        """The family of the packed layout of weights."""
        return self.levels[0].family
