"""NVIDIA GPUs: a level is machine code for an architecture and later ones of its generation, or PTX for all later
ones."""

from __future__ import annotations

from dataclasses import replace

from smc.targets.arm import ARM64
from smc.targets.target import GpuLevel, Target
from smc.targets.x86 import X86_64

_TESTED = "never on a GPU: the program under the tests' CPU stand-in, the machine code by its assembler"

SM_80 = GpuLevel("sm_80", "cuda", ("sm_80",), 80)
SM_87 = GpuLevel("sm_87", "cuda", ("sm_87",), 87)
SM_89 = GpuLevel("sm_89", "cuda", ("sm_89",), 89)
SM_90 = GpuLevel("sm_90", "cuda", ("sm_90",), 90)
SM_120 = GpuLevel("sm_120", "cuda", ("sm_120",), 120)
PTX = GpuLevel("ptx", "cuda", ("compute_80",), 80, ptx=True)

CUDA = replace(
    X86_64,
    name="cuda",
    description="NVIDIA GPUs from Ampere on (2020 and later) in x86-64 machines with Linux",
    executable_target="x86_64-linux-gnu.2.17",
    levels=(SM_120, SM_90, SM_80, PTX),
    tested=_TESTED,
    backend="cuda",
)

CUDA_ARM64 = replace(
    CUDA,
    name="cuda-arm64",
    description="the same in 64-bit ARM machines, such as Grace",
    machine=ARM64.machine,
    llvm_triple=ARM64.llvm_triple,
    zig_target=ARM64.zig_target,
    executable_target="aarch64-linux-gnu.2.17",
    tested="only linked, never run",
)


def _only(level: GpuLevel, description: str) -> Target:
    return replace(CUDA, name=f"cuda-{level.name}", description=description, levels=(level,))


GPUS: tuple[Target, ...] = (
    _only(SM_80, "GPUs of compute capability 8.x alone: A100, A10, RTX 30, RTX 40, L4"),
    _only(SM_89, "GPUs of compute capability 8.9 alone: RTX 40, L4, L40"),
    _only(SM_90, "GPUs of compute capability 9.0 alone: H100, H200"),
    _only(SM_120, "GPUs of compute capability 12.x alone: RTX 50"),
    replace(
        CUDA_ARM64,
        name="jetson-orin-gpu",
        description="the GPU of a Jetson Orin (JetPack 6)",
        levels=(SM_87,),
    ),
)
"""Targets with one level, for smaller artifacts."""
