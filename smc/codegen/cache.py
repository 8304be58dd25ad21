"""The cache of compilations: the objects of kernels and engine, and the C libraries that zig builds.

Missing or damaged entries are compiled again, and if the cache can't be written, nothing is kept. An entry is a file
`objects/KEY`, where KEY is a hash of all that it is made from: a line with the size and the SHA-256 of the rest, a line
of JSON (facts), data.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smc.folders import cache_folder

FOLDERS = ("objects", "engine", "zig")
"""smc's own names in the cache's folder; the last two are from an older version."""

_KEY = re.compile(r"[0-9a-f]{32}")
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Entry:
    """An entry: bytes, and facts about them."""

    facts: dict[str, Any]
    data: bytes


@dataclass(frozen=True)
class CacheState:
    """The state of the cache: its entries, the damaged ones among them, and all bytes."""

    entries: int
    damaged: int
    bytes: int


def cache_trouble() -> str | None:
    """Why the cache can't be written, as the end of a sentence; None if it can, and then the folder exists."""
    folder = cache_folder()
    if folder is None:
        return "there is no home folder"
    try:
        (folder / "objects").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{folder} can't be made ({error.strerror})"
    return None if os.access(folder / "objects", os.W_OK | os.X_OK) else f"{folder} can't be written"


def key_of(*parts: object) -> str:
    """The key for an object that is made from `parts`: a hash of their `repr`; parts may be bytes."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def fetch(key: str) -> Entry | None:
    """The entry, or None if there is none or it is damaged."""
    folder = cache_folder()
    return None if folder is None else _read(folder / "objects" / key)


def _read(path: Path) -> Entry | None:
    try:
        head, _, body = path.read_bytes().partition(b"\n") if path.is_file() else (b"", b"", b"")
    except OSError:
        return None
    if head != _head(body):
        return None
    facts, _, data = body.partition(b"\n")
    return Entry(json.loads(facts), data)


def _head(body: bytes) -> bytes:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()


def keep(key: str, data: bytes, facts: dict[str, Any] | None = None) -> None:
    """Keep an entry, in place of a damaged one. Does nothing if the cache can't be written."""
    folder = cache_folder()
    if folder is None:
        return
    body = json.dumps(facts or {}).encode() + b"\n" + data
    path = folder / "objects" / key
    partial = path.with_suffix(_PARTIAL)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial) as handle:
            try:
                os.truncate(handle, 0)
                with open(handle, "wb", closefd=False) as file:
                    file.write(_head(body) + b"\n" + body)
                if path.is_dir():
                    shutil.rmtree(path)
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A descriptor of a file that no other process writes now. BlockingIOError if one does."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), path.lstat()):
            raise BlockingIOError
        yield handle
    finally:
        os.close(handle)


def sweep() -> None:
    """Remove the half-written files of processes that were killed."""
    for path in _files():
        if path.suffix == _PARTIAL:
            with contextlib.suppress(OSError), _locked(path):
                path.unlink()


def cache_state() -> CacheState:
    """Check every entry."""
    entries = damaged = size = 0
    for path in _files():
        with contextlib.suppress(OSError):
            size += path.lstat().st_size
        if path.parent.name == "objects" and _KEY.fullmatch(path.name):
            entries += 1
            damaged += _read(path) is None
    return CacheState(entries, damaged, size)


def clear_cache() -> int:
    """Remove smc's own files. Returns their bytes; OSError if one can't be removed."""
    folder, size = cache_folder(), cache_state().bytes
    for path in [folder / name for name in FOLDERS] if folder is not None else ():
        if os.path.islink(path) or os.path.isfile(path):
            path.unlink()
        elif os.path.isdir(path):
            shutil.rmtree(path)
    return size


def _files() -> Iterator[Path]:
    """All files of smc; none if the folder can't be read."""
    folder = cache_folder()
    for tree in [folder / name for name in FOLDERS] if folder is not None else ():
        for place, _, files in os.walk(tree):
            yield from (Path(place) / file for file in files)
