"""Fixtures that the tests of kernels share."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from smc.cli.doctor import read_cpuinfo
from smc.codegen.cpu.builder import Kernel
from smc.targets import TARGETS, Level
from tests.codegen.cpu.emulated import numbered_folders, serve
from tests.codegen.cpu.kernels import callable_kernel, compiled
from tests.emulation import emulator


def _levels() -> list[Any]:
    """All levels; those of another CPU are emulated: one in the fast tests, as it has the others' instructions too."""
    native = list(TARGETS["x86-64"].levels)
    emulated = [
        pytest.param(level, marks=[pytest.mark.arm64] if level.name != "i8mm" else [])
        for level in TARGETS["arm64"].levels
    ]
    return [*native, *emulated]


@pytest.fixture(params=_levels(), ids=lambda level: level.name, scope="session")
def level(request: pytest.FixtureRequest) -> Level:
    """Every level that this CPU can run, and those of ARM by emulation."""
    if request.param.family == "arm64":
        emulator("aarch64")
        return request.param
    _, features = read_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    if not set(request.param.features) <= features:
        pytest.skip(f"this CPU is not {request.param.name}")
    return request.param


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Callable[..., None]]]]:
    """(level, kernels with different names) → {name: callable}: all in one shared object, or served by an emulator."""
    new_folder, servers = numbered_folders(tmp_path_factory.mktemp("kernels")), ExitStack()

    def build_all(level: Level, *kernels: Kernel) -> dict[str, Callable[..., None]]:
        folder, objects = new_folder(), []
        for number, kernel in enumerate(kernels):
            objects.append(str(folder / f"{number}.o"))
            compiled(kernel, level).write_to_file(objects[-1])
        if level.family == "arm64":
            process, callables = serve(level, kernels, objects, folder)
            servers.callback(process.kill)
            return callables
        shared = folder / "kernels.so"
        subprocess.run(
            [sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-o", str(shared), *objects],
            check=True,
        )
        library = ctypes.CDLL(str(shared))
        return {kernel.name: callable_kernel(library, kernel) for kernel in kernels}

    with servers:
        yield build_all
