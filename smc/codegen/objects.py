"""Kernels → object files: built in worker processes, kept in a content-addressed cache.

LLVM aborts the process on an intrinsic that it can't select, so kernels never compile in the caller's process; a worker
that dies names its kernel. An object is filed under the hash of everything it is made from: spec, level, the sources of
the kernels and tvm's version.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smc.codegen.kernels.specs import KernelSpec
from smc.codegen.workers import WorkerDiedError, run_in_workers
from smc.distribution import install_command
from smc.errors import InputError, Notice
from smc.targets import Level, Target

SOURCES = ("kernels", "cpu", "cpu/kernels")
"""Folders of what kernels are made from."""

TVM_PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
"""With a newer tvm-ffi this tvm crashes, so the pair is checked and not just asked for."""


@dataclass(frozen=True)
class KernelObject:
    """A compiled kernel: its symbol, C parameters and object file."""

    spec: KernelSpec
    level: Level
    symbol: str
    prototype: str
    path: Path


def cache_folder() -> Path:
    """Where objects and the linker's cache are kept: $SMC_CACHE, or smc in the user's cache folder.

    Where it can't be made: a temporary folder, until this process ends, and a Notice.
    """
    root = os.environ.get("SMC_CACHE")
    return _made(root or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "smc"))


@functools.cache
def _made(place: str) -> Path:
    try:
        folder = Path(place).expanduser()  # RuntimeError: there is no home
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "there is no home folder"
        folder = Path(tempfile.mkdtemp(prefix="smc-cache-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        text = f"the cache {place} can't be made ({reason}): a temporary one takes its place; SMC_CACHE names another"
        warnings.warn(text, Notice, stacklevel=3)
    return folder


def check_versions() -> None:
    """InputError where the installed tvm is not the pinned pair."""
    for package, wanted in TVM_PINS.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(f"compiling needs {package}=={wanted}: {install_command()}") from None
        if found != wanted:
            command = f"{sys.executable} -m pip install {package}=={wanted}"
            raise InputError(f"{package} {found} does not work here: {command}")


def build_kernels(
    kernels: Sequence[tuple[KernelSpec, Level]], target: Target, progress: Callable[[float], None]
) -> list[KernelObject]:
    """Objects of all kernels, in order; what the cache has is not built again."""
    folder = cache_folder().absolute() / "objects"
    folder.mkdir(parents=True, exist_ok=True)
    keys = [_key(spec, level, target) for spec, level in kernels]
    missing = [place for place, key in enumerate(keys) if not (folder / f"{key}.json").exists()]
    if missing:
        check_versions()
        _build_missing([(*kernels[p], target.llvm_triple, folder / keys[p]) for p in missing], progress)
    progress(1.0)
    objects = []
    for (spec, level), key in zip(kernels, keys, strict=True):
        facts = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        objects.append(KernelObject(spec, level, facts["symbol"], facts["prototype"], folder / f"{key}.o"))
    return objects


def _build_missing(jobs: list[tuple[KernelSpec, Level, str, Path]], progress: Callable[[float], None]) -> None:
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    try:
        for done, _ in enumerate(run_in_workers(build_one, jobs, workers), 1):
            progress(done / len(jobs))
    except WorkerDiedError as error:
        spec, level, *_ = jobs[error.job]
        raise RuntimeError(f"LLVM gave up on the kernel {spec.name()} for {level.name} ({error})") from None


def symbol_name(spec: KernelSpec, level: Level) -> str:
    """The C symbol of a kernel on a level."""
    return f"{spec.name()}__{level.name}"


def build_one(spec: KernelSpec, level: Level, triple: str, path: Path) -> None:
    """Build a kernel; runs in a worker. Writes path.o and, last, path.json."""
    from smc.codegen.cpu.build import build_kernel
    from smc.codegen.cpu.builder import lower

    kernel = build_kernel(spec, symbol_name(spec, level), level)
    module = lower(kernel, triple, level)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / "kernel"
        module.write_to_file(str(partial.with_suffix(".o")))
        facts = json.dumps({"symbol": kernel.name, "prototype": kernel.prototype()})
        partial.with_suffix(".json").write_text(facts, encoding="utf-8")
        for suffix in (".o", ".json"):
            os.replace(partial.with_suffix(suffix), path.with_suffix(suffix))


def write_listings(objects: Sequence[KernelObject], target: Target, folder: Path, kinds: Sequence[str]) -> None:
    """Write every kernel as "tir" (SYMBOL.py), "asm" (SYMBOL.s; both built anew, in a worker) and "obj" (SYMBOL.o)."""
    if "obj" in kinds:
        for kernel in objects:
            shutil.copy(kernel.path, folder / f"{kernel.symbol}.o")
    if {"tir", "asm"} & set(kinds):
        jobs = [(o.spec, o.level, target.llvm_triple, folder.absolute(), tuple(kinds)) for o in objects]
        for _ in run_in_workers(write_listing, jobs, 1):
            pass


def write_listing(spec: KernelSpec, level: Level, triple: str, folder: Path, kinds: tuple[str, ...]) -> None:
    """Write one kernel's listings; runs in a worker."""
    from smc.codegen.cpu.build import build_kernel
    from smc.codegen.cpu.builder import lower

    kernel = build_kernel(spec, symbol_name(spec, level), level)
    if "tir" in kinds:
        (folder / f"{kernel.name}.py").write_text(kernel.function().script(), encoding="utf-8")
    if "asm" in kinds:
        text = lower(kernel, triple, level).inspect_source("asm")
        (folder / f"{kernel.name}.s").write_text(text, encoding="utf-8")


def _key(spec: KernelSpec, level: Level, target: Target) -> str:
    text = repr((spec, level, target.llvm_triple, _sources_hash(), TVM_PINS))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def _sources_hash() -> str:
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for part in SOURCES:
        for source in sorted((folder / part).glob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()
