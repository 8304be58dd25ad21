"""Kernels built as a user's artifact has them: compiled to objects, linked, called through ctypes on guarded memory."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smc.cli.doctor import read_cpuinfo
from smc.codegen.kernels.builder import Kernel, lower
from smc.codegen.layout import MatrixLayout, pack_matrix, padded
from smc.ir import EncodedTensor, Encoding, encode_float
from smc.targets import TARGETS, Level

LIBC = ctypes.CDLL(None, use_errno=True)
C_TYPES = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}


def guarded(values: np.ndarray) -> np.ndarray:
    """A copy, aligned to 64 bytes, behind which (rounded up to 64 bytes) every access is a segmentation fault."""
    size = padded(max(values.nbytes, 1), 64)
    whole = padded(size, mmap.PAGESIZE)
    memory = mmap.mmap(-1, whole + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert LIBC.mprotect(ctypes.c_void_p(address + whole), mmap.PAGESIZE, 0) == 0
    copy = np.frombuffer(memory, values.dtype, values.size, whole - size).reshape(values.shape)
    copy[...] = values
    return copy


def compiled(kernel: Kernel, level: Level) -> Any:
    """The tvm module of a finished kernel."""
    from tvm.target import Target

    triple = TARGETS["x86-64"].llvm_triple
    return lower(kernel.function(), Target({"kind": "llvm", "mtriple": triple, "mattr": [f"+{f}" for f in level.features]}))


def callable_kernel(library: ctypes.CDLL, kernel: Kernel) -> Callable[..., None]:
    """A kernel of a library as a Python function of arrays and numbers."""
    entry = getattr(library, kernel.name)
    types = [C_TYPES.get(part.split()[0], ctypes.c_void_p) for part in kernel.prototype().split(", ")]
    entry.argtypes, entry.restype = types, ctypes.c_int32

    def call(*arguments: Any) -> None:
        for argument, ctype in zip(arguments, types, strict=True):
            assert isinstance(argument, np.ndarray) == (ctype is ctypes.c_void_p), (argument, ctype)
        status = entry(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))
        assert status == 0

    return call


@pytest.fixture(params=TARGETS["x86-64"].levels, ids=lambda level: level.name, scope="session")
def level(request: pytest.FixtureRequest) -> Level:
    """Every level that this CPU can run."""
    _, features = read_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    if not set(request.param.features) <= features:
        pytest.skip(f"this CPU is not {request.param.name}")
    return request.param


@pytest.fixture(scope="session")
def compile_kernel() -> Callable[[Kernel, Level], Any]:
    """(kernel, level) → tvm module, which can write objects and show assembly."""
    return compiled


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Callable[..., None]]]:
    """(level, kernels with different names) → {name: callable}: all in one shared object."""
    folder, numbers = tmp_path_factory.mktemp("kernels"), itertools.count()

    def build_all(level: Level, *kernels: Kernel) -> dict[str, Callable[..., None]]:
        objects = []
        for kernel in kernels:
            objects.append(str(folder / f"{next(numbers)}.o"))
            compiled(kernel, level).write_to_file(objects[-1])
        shared = folder / f"{next(numbers)}.so"
        subprocess.run([sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-o", str(shared), *objects], check=True)
        library = ctypes.CDLL(str(shared))
        return {kernel.name: callable_kernel(library, kernel) for kernel in kernels}

    return build_all


class Matrix:
    """A packed matrix as kernels get it: codes, scales and zeros in guarded memory, and its values in float64."""

    def __init__(self, tensor: EncodedTensor) -> None:
        self.tensor = tensor
        rows, columns = tensor.shape
        self.layout = layout = MatrixLayout(tensor.encoding, rows, columns)
        packed = pack_matrix(tensor)
        self.codes = guarded(packed[: layout.codes_bytes])
        self.scales = guarded(packed[layout.scales_offset : layout.scales_offset + layout.scales_bytes])
        self.zeros = guarded(packed[layout.zeros_offset : layout.zeros_offset + layout.zeros_bytes])
        self.values = tensor.decode().numpy().astype(np.float64)


@pytest.fixture(scope="session")
def guard() -> Callable[[np.ndarray], np.ndarray]:
    """A copy of an array that ends at a page which may not be touched."""
    return guarded


@pytest.fixture(scope="session")
def make_matrix() -> Callable[..., Matrix]:
    """(encoding, rows, columns, seed, extreme=False) → a random packed matrix."""

    def make(encoding: Encoding, rows: int, columns: int, seed: int, extreme: bool = False) -> Matrix:
        return Matrix(random_tensor(encoding, rows, columns, seed, extreme))

    return make


def random_tensor(encoding: Encoding, rows: int, columns: int, seed: int, extreme: bool = False) -> EncodedTensor:
    """Codes of every value (extreme: only the smallest and largest, whole rows alike), scales of both signs."""
    rng = np.random.default_rng(seed)
    if encoding.is_float:
        return encode_float(torch.tensor(rng.standard_normal((rows, columns)), dtype=torch.float32), encoding)
    groups, size = encoding.groups(columns), encoding.group_size(columns)
    count = len(encoding.levels) if encoding.levels is not None else 1 << encoding.bits
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[encoding.scale_dtype]

    def stored(values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values).to(dtype).float()

    codes, zeros = rng.integers(0, count, (rows, groups, size)), rng.integers(0, count, (rows, groups))
    if extreme:
        codes[...] = (np.arange(rows) % 2 * (count - 1))[:, None, None]
        zeros = zeros % 2 * (count - 1)
    # As the quantizing framework has it: no value but 0 in the padding of the last group.
    scales = stored(rng.uniform(0.001, 0.02, (rows, groups)) * rng.choice([-1, 1], (rows, groups)))
    return EncodedTensor(
        encoding,
        (rows, columns),
        codes=torch.tensor(codes, dtype=torch.uint8),
        scales=scales[:1, :1] if encoding.group == "tensor" else scales,
        zeros=torch.tensor(zeros, dtype=torch.uint8) if encoding.zero == "group" else None,
        offsets=stored(rng.standard_normal((rows, groups)) * 0.02) if encoding.offset else None,
    )
