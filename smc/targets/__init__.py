"""Targets with their feature levels, as data.

A level is an explicit list of LLVM features, never the name of a host CPU; the engine tests exactly that list.
"""

from __future__ import annotations

import difflib
import platform

from smc.errors import InputError
from smc.targets.arm import ARM64, ARM64_ANDROID, ARM64_MACOS
from smc.targets.cuda import CUDA, CUDA_ARM64, GPUS
from smc.targets.devices import DEVICES
from smc.targets.target import CpuLevel, GpuLevel, Level, Target
from smc.targets.x86 import X86_64

__all__ = ["TARGETS", "CpuLevel", "GpuLevel", "Level", "Target", "find_target"]

_KINDS = (X86_64, ARM64, ARM64_ANDROID, ARM64_MACOS, CUDA, CUDA_ARM64)

TARGETS: dict[str, Target] = {target.name: target for target in (*_KINDS, *DEVICES, *GPUS)}
"""Targets for kinds of machines first, then those for single devices."""


def find_target(name: str) -> Target:
    """The target of that name; "native" is this machine's."""
    if name == "native":
        for target in TARGETS.values():
            if target.machine == platform.machine() and target.system == platform.system():
                return target
        raise InputError(f"no target for this machine ({platform.system()} {platform.machine()}); there is {_names()}")
    if name not in TARGETS:
        near = difflib.get_close_matches(name, ["native", *TARGETS], 1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown target {name!r}{hint} (there is {_names()})")
    return TARGETS[name]


def _names() -> str:
    return ", ".join(["native", *TARGETS])
