"""The C compiler: zig's, from PyPI, which brings the C library of every target as source and compiles it when it links.

What zig makes for that is kept as one entry of our cache for each target and unpacked where it works: so zig's own
cache, which it doesn't check, lasts as long as a compilation, and a read-only cache will do.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from smc.codegen import cache
from smc.distribution import install_command
from smc.errors import InputError, child_refused

_OUR_CODE = re.compile(r":\d+:\d+: (fatal )?error: |undefined symbol|duplicate symbol|unknown argument")
"""What the compiler and the linker say where the code or the call is wrong, and not the machine."""


@functools.cache
def zig_version() -> str:
    """The release of the package; InputError if it is missing."""
    if importlib.util.find_spec("ziglang") is None:
        raise InputError(f"compiling needs the package ziglang: {install_command()}")
    return importlib.metadata.version("ziglang")


def zig_compile(zig_target: str, arguments: Sequence[str], work: Path) -> None:
    """Run the compiler on `arguments`, which link nothing. work: a folder for its intermediate files."""
    _run(zig_target, arguments, work / "zig", work / "zig")


def zig_link(zig_target: str, arguments: Sequence[str], work: Path) -> None:
    """Run the compiler on `arguments`, which link with the target's C library. work: as above."""
    with _libraries(cache.key_of("libraries", zig_version(), zig_target), work) as libraries:
        _run(zig_target, arguments, work / "zig", libraries)


@contextmanager
def _libraries(key: str, work: Path) -> Iterator[Path]:
    """A folder with what zig makes of a C library, as its global cache. What is not there is kept when zig is done."""
    folder = work / f"libraries-{key[:8]}"
    entry = None
    if not folder.exists() and (entry := cache.fetch(key)) is not None:
        with zipfile.ZipFile(io.BytesIO(entry.data)) as archive:
            archive.extractall(folder)
    new = not folder.exists()
    yield folder
    if new:
        cache.keep(key, _packed(folder))


def _packed(folder: Path) -> bytes:
    """Archives and start files as zig's cache has them, with its notes; objects that went into an archive are left out.

    `z` and `tmp` are of use to zig alone, while it compiles its own sources.
    """
    files = [path for name in ("b", "h", "o") for path in sorted((folder / name).rglob("*")) if path.is_file()]
    archives = [path.read_bytes() for path in files if path.suffix == ".a"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for path in files:
            data = path.read_bytes()
            if path.suffix != ".o" or not any(data in archive for archive in archives):
                packed.writestr(zipfile.ZipInfo(str(path.relative_to(folder))), data)
    return buffer.getvalue()


def _run(zig_target: str, arguments: Sequence[str], local: Path, libraries: Path) -> None:
    zig_version()
    environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(local), "ZIG_GLOBAL_CACHE_DIR": str(libraries)}
    command = [sys.executable, "-m", "ziglang", "cc", "-target", zig_target, *arguments]
    result = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env=environment, check=False
    )
    if result.returncode == 0:
        return
    reason = child_refused(result.returncode, result.stderr)
    if reason is None and result.returncode > 0 and not _OUR_CODE.search(result.stderr):
        lines = [line for line in result.stderr.splitlines() if "error: " in line]
        reason = lines[-1].partition("error: ")[2] if lines else f"it ended with status {result.returncode}"
    if reason is not None:
        raise InputError(f"the C compiler can't work here: {reason}")
    raise RuntimeError(f"the C compiler failed: {' '.join(command)}\n{result.stderr}")
