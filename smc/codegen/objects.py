"""Kernels → object files: built in worker processes, kept in a content-addressed cache.

LLVM aborts the process on an intrinsic that it can't select, so kernels never compile in the caller's process; a worker
that dies names its kernel. An object is kept (cache.py) under the hash of everything it is made from: spec, level, the
sources of the kernels and tvm's version.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from smc.codegen import cache
from smc.codegen.kernels.specs import KernelSpec
from smc.codegen.workers import Worker, WorkerDiedError, run_in_workers
from smc.distribution import install_command
from smc.errors import InputError
from smc.targets import CpuLevel, Target

SOURCES = ("kernels", "cpu", "cpu/kernels")
"""Folders with the sources of kernels."""

TVM_PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
"""With a newer tvm-ffi this tvm crashes, so the pair is checked and not just required."""


_spare: list[Worker] | None = None


@contextmanager
def kept_workers() -> Iterator[None]:
    """For many compilations in one process: workers wait for the next one instead of ending (200 MB each)."""
    global _spare
    _spare = []
    try:
        yield
    finally:
        for worker in _spare:
            worker.close()
        _spare = None


@dataclass(frozen=True)
class KernelObject:
    """A compiled kernel: its symbol and object file."""

    spec: KernelSpec
    level: CpuLevel
    symbol: str
    path: Path


def check_versions() -> None:
    """InputError if the installed tvm is not the pinned pair."""
    for package, wanted in TVM_PINS.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(f"compiling needs {package}=={wanted}: {install_command()}") from None
        if found != wanted:
            command = f"{sys.executable} -m pip install {package}=={wanted}"
            raise InputError(f"{package} {found} does not work here: {command}")


def build_kernels(
    kernels: Sequence[tuple[KernelSpec, CpuLevel]], target: Target, work: Path, progress: Callable[[float], None]
) -> list[KernelObject]:
    """Objects of all kernels, in order, in the folder `work`; those that the cache has are not built again."""
    keys = [_key(spec, level, target) for spec, level in kernels]
    facts = {key: _fetch(key, work) for key in dict.fromkeys(keys)}
    missing = [place for place, key in enumerate(keys) if facts[key] is None and keys.index(key) == place]
    if missing:
        check_versions()
        cache.sweep()
        jobs = [(*kernels[place], target.llvm_triple, work.absolute() / keys[place]) for place in missing]
        for done, place in enumerate(_built(jobs), 1):
            key = keys[missing[place]]
            facts[key] = _keep(key, work)
            progress(done / len(jobs))
    progress(1.0)
    objects = []
    for (spec, level), key in zip(kernels, keys, strict=True):
        known = facts[key]
        assert known is not None
        objects.append(KernelObject(spec, level, known["symbol"], _object(key, work)))
    return objects


def _object(key: str, work: Path) -> Path:
    return work / f"{key}.o"


def _fetch(key: str, work: Path) -> dict[str, str] | None:
    """Put a kernel's object from the cache into `work`; its facts, None if the cache has it not."""
    entry = cache.fetch(key)
    if entry is None:
        return None
    _object(key, work).write_bytes(entry.data)
    return entry.facts


def _keep(key: str, work: Path) -> dict[str, str]:
    """Put the object that a worker has built into the cache; returns its facts."""
    facts: dict[str, str] = json.loads((work / f"{key}.json").read_text())
    cache.keep(key, _object(key, work).read_bytes(), facts)
    return facts


def _built(jobs: list[tuple[KernelSpec, CpuLevel, str, Path]]) -> Iterator[int]:
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    try:
        yield from run_in_workers(build_one, jobs, workers, _spare)
    except WorkerDiedError as error:
        spec, level, *_ = jobs[error.job]
        kernel = f"the kernel {spec.name()} for {level.name}"
        if error.refusal is not None:
            raise InputError(f"{kernel} can't be built: {error.refusal}") from None
        raise RuntimeError(f"LLVM failed on {kernel} ({error})") from None


def symbol_name(spec: KernelSpec, level: CpuLevel) -> str:
    """The C symbol of a kernel on a level."""
    return f"{spec.name()}__{level.name}"


def build_one(spec: KernelSpec, level: CpuLevel, triple: str, path: Path) -> None:
    """Build a kernel; runs in a worker. Writes path.o and path.json, its facts."""
    _leave_out_torch()
    from smc.codegen.cpu.build import build_kernel
    from smc.codegen.cpu.builder import lower

    kernel = build_kernel(spec, symbol_name(spec, level), level)
    lower(kernel, triple, level).write_to_file(f"{path}.o")
    Path(f"{path}.json").write_text(json.dumps({"symbol": kernel.name}), encoding="utf-8")


def _leave_out_torch() -> None:
    """In a worker: tvm imports torch where it finds it, for nothing that kernels need (1.7 s and 200 MB per worker)."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # the way to make an import fail


def write_listings(objects: Sequence[KernelObject], target: Target, folder: Path, kinds: Sequence[str]) -> None:
    """Write every kernel as "tir" (SYMBOL.py), "asm" (SYMBOL.s; both built again, in a worker) and "obj" (SYMBOL.o)."""
    if "obj" in kinds:
        for kernel in objects:
            shutil.copy(kernel.path, folder / f"{kernel.symbol}.o")
    if {"tir", "asm"} & set(kinds):
        jobs = [(o.spec, o.level, target.llvm_triple, folder.absolute(), tuple(kinds)) for o in objects]
        for _ in run_in_workers(write_listing, jobs, 1):
            pass


def write_listing(spec: KernelSpec, level: CpuLevel, triple: str, folder: Path, kinds: tuple[str, ...]) -> None:
    """Write one kernel's listings; runs in a worker."""
    _leave_out_torch()
    from smc.codegen.cpu.build import build_kernel
    from smc.codegen.cpu.builder import lower

    kernel = build_kernel(spec, symbol_name(spec, level), level)
    if "tir" in kinds:
        (folder / f"{kernel.name}.py").write_text(kernel.function().script(), encoding="utf-8")
    if "asm" in kinds:
        text = lower(kernel, triple, level).inspect_source("asm")
        (folder / f"{kernel.name}.s").write_text(text, encoding="utf-8")


def _key(spec: KernelSpec, level: CpuLevel, target: Target) -> str:
    return cache.key_of("kernel", spec, level, target.llvm_triple, _sources_hash(), TVM_PINS)


@functools.cache
def _sources_hash() -> str:
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for part in SOURCES:
        for source in sorted((folder / part).glob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()
