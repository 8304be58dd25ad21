"""Objects + engine + host program → program.so, by zig's C compiler (from PyPI; it brings every target's libc)."""

from __future__ import annotations

import concurrent.futures
import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from smc.codegen.cpu import bionic
from smc.codegen.objects import cache_folder
from smc.distribution import install_command
from smc.errors import InputError
from smc.targets import Target

FLAGS = (
    "-std=c11",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-sanitize=undefined",
    "-fno-unwind-tables",  # 25 kB that nothing reads: C throws nothing, and zig keeps frame pointers, for profilers
    "-fno-asynchronous-unwind-tables",
    "-Wall",
    "-Wno-unused-parameter",
)
"""zig's own default would be native instructions and trapping arithmetic."""

ELF_FLAGS = (
    "-shared",
    "-s",
    "-rtlib=none",  # nothing needs it, and zig would compile it from source first
    "-Wl,-Bsymbolic",  # several programs in a process must not find each other's functions
    "-Wl,--gc-sections",
    "-Wl,-z,defs",  # what is missing must be seen here, not on the device
    "-Wl,-z,max-page-size=65536",  # some arm64 kernels have such pages
)

LINK_FLAGS = {
    "Linux": (*ELF_FLAGS, "-lpthread", "-lm"),
    "Android": (*ELF_FLAGS, "-nostdlib"),
    # Kernels stay visible: zig's linker keeps no lists of exports. They find each other by library there, not by name.
    "Darwin": ("-shared", "-s", "-Wl,-dead_strip", "-Wl,-install_name,program.so"),
}
"""By the target's system."""

EXECUTABLE_FLAGS = (
    "-static",
    "-s",
    "-Wl,--gc-sections",
    "-Wl,-z,stack-size=1048576",  # of threads too: musl's own default is 128 KiB
    "-Wl,-z,max-page-size=65536",  # some arm64 kernels have such pages
)
"""A static executable needs nothing of the system that it runs on."""

EXPORTS = "{ global: smc_engine; local: *; };\n"
"""A version script: kernels come from tvm, which makes everything visible."""


Progress = Callable[[float], None]
"""Told which part of the work is done, from 0 to 1."""


def _nothing(fraction: float) -> None:
    """Nobody wants to know."""


def _part(progress: Progress, index: int, count: int) -> Progress:
    """The progress of one of `count` parts of the work."""
    return lambda fraction: progress((index + fraction) / count)


def engine_folder() -> Path:
    """Where the engine's C files are: package data of the runtime."""
    return Path(__file__).parents[2] / "runtime" / "engine"


def standalone_folder() -> Path:
    """Where the C files of standalone executables are."""
    return engine_folder().parent / "standalone"


def link_program(
    host: Path, objects: Sequence[Path], target: Target, out: Path, progress: Progress = _nothing
) -> None:
    """Link the shared library `out`. The engine's objects are compiled once for a target and cached."""
    engine = cached_objects(engine_folder(), *_compiler(target), progress=_part(progress, 0, 3))
    host_object = out.with_suffix(".host.o")
    _compile(target, ["-I", str(engine_folder()), "-c", str(host), "-o", str(host_object)])
    progress(2 / 3)
    inputs = [str(path) for path in (host_object, *engine, *objects)]
    if target.system == "Android":
        inputs += map(str, bionic.write_stand_ins(out.parent, lambda rest: _link(target, rest)))
    if target.system != "Darwin":
        exports = out.with_suffix(".exports")
        exports.write_text(EXPORTS)
        inputs.append(f"-Wl,--version-script={exports}")
    _link(target, [*inputs, "-o", str(out)])


def compile_executable(
    sources: Sequence[Path],
    objects: Sequence[Path],
    target: Target,
    out: Path,
    includes: Sequence[Path],
    progress: Progress = _nothing,
) -> None:
    """Compile C sources, to objects beside `out`, and link them with others to the static executable `out`."""
    zig_target = target.executable_target
    assert zig_target is not None
    folders = [part for folder in includes for part in ("-I", str(folder))]
    jobs = [([*FLAGS, *folders], source, out.parent / f"{source.stem}.o") for source in sources]
    _compile_all(zig_target, jobs, _part(progress, 0, 2))
    inputs = [str(path) for path in (*(path for _, _, path in jobs), *objects)]
    _zig(zig_target, [*FLAGS, *EXECUTABLE_FLAGS, *inputs, "-o", str(out)])


def link_standalone(
    sources: Sequence[Path], objects: Sequence[Path], target: Target, out: Path, progress: Progress = _nothing
) -> None:
    """Link engine, command line, the generated C files `sources` and kernels to the static executable `out`."""
    assert target.executable_target is not None
    folders = [engine_folder(), standalone_folder()]
    ours = [
        path
        for index, folder in enumerate(folders)
        for path in cached_objects(folder, target.executable_target, FLAGS, progress=_part(progress, index, 3))
    ]
    compile_executable(sources, [*ours, *objects], target, out, folders, _part(progress, 2, 3))


def cached_objects(
    folder: Path, zig_target: str, flags: Sequence[str], *, progress: Progress = _nothing
) -> list[Path]:
    """A folder's C files compiled, once for all that is the same: files, headers, target and flags."""
    sources = sorted(folder.glob("*.c"))
    headers = sorted({*folder.glob("*.h"), *engine_folder().glob("*.h")})
    digest = hashlib.sha256(repr((zig_target, *flags)).encode())
    for path in [*headers, *sources]:
        digest.update(path.read_bytes())
    kept = cache_folder() / "engine" / digest.hexdigest()[:32]
    objects = [kept / f"{source.stem}.o" for source in sources]
    kept.mkdir(parents=True, exist_ok=True)

    arguments = [*flags, "-I", str(engine_folder())]
    missing = [(arguments, source, path) for source, path in zip(sources, objects, strict=True) if not path.exists()]
    _compile_all(zig_target, missing, progress)
    return objects


def _compile_all(zig_target: str, jobs: Sequence[tuple[list[str], Path, Path]], progress: Progress) -> None:
    """Compile C files side by side; jobs: arguments, source, and the object, which appears when it is complete."""

    def build(arguments: list[str], source: Path, path: Path) -> None:
        partial = path.with_suffix(f".{os.getpid()}.o")
        _zig(zig_target, [*arguments, "-c", str(source), "-o", str(partial)])
        os.replace(partial, path)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for done, _ in enumerate(pool.map(lambda job: build(*job), jobs), 1):
            progress(done / len(jobs))
    progress(1.0)


def _compiler(target: Target) -> tuple[str, tuple[str, ...]]:
    """zig's target and the flags for compiling."""
    if target.system == "Android":
        return bionic.HEADERS, (*FLAGS, *bionic.COMPILE_FLAGS)
    return target.zig_target, FLAGS


def _compile(target: Target, arguments: list[str]) -> None:
    zig_target, flags = _compiler(target)
    _zig(zig_target, [*flags, *arguments])


def _link(target: Target, arguments: list[str]) -> None:
    _zig(target.zig_target, [*LINK_FLAGS[target.system], *arguments])


def _zig(zig_target: str, arguments: list[str]) -> None:
    if importlib.util.find_spec("ziglang") is None:
        raise InputError(f"compiling needs the package ziglang: {install_command()}")
    environment = dict(os.environ)
    for kind in ("GLOBAL", "LOCAL"):
        environment.setdefault(f"ZIG_{kind}_CACHE_DIR", str(cache_folder() / "zig"))
    command = [sys.executable, "-m", "ziglang", "cc", "-target", zig_target, *arguments]
    result = subprocess.run(command, capture_output=True, env=environment, check=False)
    if result.returncode:
        raise RuntimeError(f"the C compiler failed: {' '.join(command)}\n{result.stderr.decode(errors='replace')}")
