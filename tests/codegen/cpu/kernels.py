"""Kernels built as a user's artifact has them, called through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from smc.codegen.cpu.builder import Kernel, lower
from smc.targets import TARGETS, Level

C_TYPES = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}


def compiled(kernel: Kernel, level: Level) -> Any:
    """The tvm module of a finished kernel."""
    triple = TARGETS["arm64" if level.family == "arm64" else "x86-64"].llvm_triple
    return lower(kernel, triple, level)


def callable_kernel(library: ctypes.CDLL, kernel: Kernel) -> Callable[..., None]:
    """A kernel of a library as a Python function of arrays and numbers."""
    entry = getattr(library, kernel.name)
    types = [ctypes.c_void_p if p.pointer else C_TYPES[p.type] for p in kernel.signature.parameters]
    entry.argtypes, entry.restype = types, ctypes.c_int32

    def call(*arguments: Any) -> None:
        for argument, ctype in zip(arguments, types, strict=True):
            assert isinstance(argument, np.ndarray) == (ctype is ctypes.c_void_p), (argument, ctype)
        status = entry(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))
        assert status == 0

    return call
