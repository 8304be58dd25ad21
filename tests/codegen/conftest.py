"""Fixtures that the tests of kernels share."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from smc.cli.doctor import read_cpuinfo
from smc.codegen.kernels.builder import Kernel
from smc.targets import TARGETS, Level
from tests.codegen.kernels import callable_kernel, compiled


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """The exact reference's operations are small: threads that wait for each other take far longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=TARGETS["x86-64"].levels, ids=lambda level: level.name, scope="session")
def level(request: pytest.FixtureRequest) -> Level:
    """Every level that this CPU can run."""
    _, features = read_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    if not set(request.param.features) <= features:
        pytest.skip(f"this CPU is not {request.param.name}")
    return request.param


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
        subprocess.run(
            [sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-o", str(shared), *objects],
            check=True,
        )
        library = ctypes.CDLL(str(shared))
        return {kernel.name: callable_kernel(library, kernel) for kernel in kernels}

    return build_all
