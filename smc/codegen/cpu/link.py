"""Objects + engine + host program → program.so, by zig's C compiler (from PyPI; it brings every target's libc)."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from pathlib import Path

from smc.codegen import cache
from smc.codegen.cpu import bionic
from smc.codegen.cpu.zig import zig_compile, zig_link, zig_version
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
    # Two arguments of a kernel that are swapped must not compile.
    "-Werror=incompatible-pointer-types",
    "-Werror=incompatible-pointer-types-discards-qualifiers",
    "-Werror=int-conversion",
    "-Werror=pointer-sign",
)
"""zig's own default would be native instructions and trapping arithmetic."""

ELF_FLAGS = (
    "-shared",
    "-s",
    "-fno-sanitize=undefined",  # zig would compile its library for that, too
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
    "-s",
    "-Wl,--gc-sections",
    "-Wl,-z,stack-size=1048576",  # of threads too: musl's own default is 128 KiB
    "-Wl,-z,max-page-size=65536",  # some arm64 kernels have such pages
)

STATIC, DYNAMIC = ("-static",), ("-ldl", "-lpthread", "-lm")
"""A static executable, with musl, needs nothing of the system that it runs on; but it can't open a GPU's driver."""

EXPORTS = "{ global: smc_engine; local: *; };\n"
"""A version script: kernels come from tvm, which makes everything visible."""


Progress = Callable[[float], None]
"""A callback for the part of the work that is done, from 0 to 1."""


def _nothing(fraction: float) -> None:
    """Ignore progress."""


def _part(progress: Progress, index: int, count: int) -> Progress:
    """The progress of one of `count` parts of the work."""
    return lambda fraction: progress((index + fraction) / count)


def engine_folder() -> Path:
    """Where the engine's C files are: package data of the runtime."""
    return Path(__file__).parents[2] / "runtime" / "engine"


def standalone_folder() -> Path:
    """Where the C files of standalone executables are."""
    return Path(__file__).parents[2] / "standalone" / "c"


def link_program(
    host: Path, objects: Sequence[Path], target: Target, out: Path, progress: Progress = _nothing
) -> None:
    """Link the shared library `out`, in whose folder intermediate files are left.

    The engine's objects are compiled once for a target and cached.
    """
    zig_target, flags = _compiler(target)
    engine = engine_objects(target, zig_target, flags, out.parent, progress=_part(progress, 0, 3))
    host_object = out.with_suffix(".host.o")
    arguments = [*flags, "-I", str(engine_folder()), "-c", str(host), "-o", str(host_object)]
    zig_compile(zig_target, arguments, out.parent)
    progress(2 / 3)
    inputs = [str(path) for path in (host_object, *engine, *objects)]
    if target.system == "Android":
        inputs += map(str, bionic.write_stand_ins(out.parent, lambda rest: _link(target, rest, out.parent)))
    if target.system != "Darwin":
        exports = out.with_suffix(".exports")
        exports.write_text(EXPORTS)
        inputs.append(f"-Wl,--version-script={exports}")
    _link(target, [*inputs, "-o", str(out)], out.parent)


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
    flags = [*FLAGS, *(part for folder in includes for part in ("-I", str(folder)))]

    def build(source: Path) -> Path:
        path = out.parent / f"{source.stem}.o"
        zig_compile(zig_target, [*flags, "-c", str(source), "-o", str(path)], out.parent)
        return path

    compiled = _side_by_side(build, sources, _part(progress, 0, 2))
    inputs = [str(path) for path in (*compiled, *objects)]
    libraries = STATIC if zig_target.endswith("musl") else DYNAMIC
    zig_link(zig_target, [*FLAGS, *EXECUTABLE_FLAGS, *inputs, *libraries, "-o", str(out)], out.parent)


def link_standalone(
    sources: Sequence[Path], objects: Sequence[Path], target: Target, out: Path, progress: Progress = _nothing
) -> None:
    """Link engine, command line, the generated C files `sources` and kernels to the static executable `out`."""
    assert target.executable_target is not None
    folders = [engine_folder(), standalone_folder()]
    ours = [
        *engine_objects(target, target.executable_target, FLAGS, out.parent, progress=_part(progress, 0, 3)),
        *cached_objects(
            standalone_folder(), target.executable_target, FLAGS, out.parent, progress=_part(progress, 1, 3)
        ),
    ]
    compile_executable(sources, [*ours, *objects], target, out, folders, _part(progress, 2, 3))


def link_driver(host: Path, objects: Sequence[Path], target: Target, out: Path) -> None:
    """Link engine, driver, a program's text and kernels to the static executable `out`, which runs batches."""
    assert target.executable_target is not None
    engine = engine_objects(target, target.executable_target, FLAGS, out.parent)
    driver = engine_folder().parent / "driver" / "driver.c"
    compile_executable([driver, host], [*engine, *objects], target, out, [engine_folder()])


def engine_objects(
    target: Target, zig_target: str, flags: Sequence[str], work: Path, *, progress: Progress = _nothing
) -> list[Path]:
    """The engine's objects: what all devices share, and the part of the target's kind of device."""
    folders = (engine_folder(), engine_folder() / target.backend)
    return [
        path
        for index, folder in enumerate(folders)
        for path in cached_objects(folder, zig_target, flags, work, progress=_part(progress, index, len(folders)))
    ]


def cached_objects(
    folder: Path, zig_target: str, flags: Sequence[str], work: Path, *, progress: Progress = _nothing
) -> list[Path]:
    """A folder's C files compiled, once for all that is the same: source, headers, target and flags.

    work: an existing folder that objects and intermediate files go to.
    """
    headers = [path.read_bytes() for path in sorted({*folder.glob("*.h"), *engine_folder().glob("*.h")})]

    def build(source: Path) -> Path:
        key = cache.key_of("C", zig_version(), zig_target, flags, source.name, source.read_bytes(), headers)
        path = work / f"{source.stem}-{key}.o"
        kept = cache.fetch(key)
        if kept is not None:
            path.write_bytes(kept.data)
        else:
            arguments = [*flags, "-I", str(engine_folder()), "-c", str(source), "-o", str(path)]
            zig_compile(zig_target, arguments, work)
            cache.keep(key, path.read_bytes())
        return path

    return _side_by_side(build, sorted(folder.glob("*.c")), progress)


def _side_by_side(build: Callable[[Path], Path], sources: Sequence[Path], progress: Progress) -> list[Path]:
    """build(source) → object, for all sources at once."""
    objects = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for path in pool.map(build, sources):
            objects.append(path)
            progress(len(objects) / len(sources))
    progress(1.0)
    return objects


def _compiler(target: Target) -> tuple[str, tuple[str, ...]]:
    """zig's target and the flags for compiling."""
    if target.system == "Android":
        return bionic.HEADERS, (*FLAGS, *bionic.COMPILE_FLAGS)
    return target.zig_target, FLAGS


def _link(target: Target, arguments: list[str], work: Path) -> None:
    zig_link(target.zig_target, [*LINK_FLAGS[target.system], *arguments], work)
