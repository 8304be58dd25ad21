"""Writes the artifact: one ZIP with stored members, each beginning at a multiple of 64 KiB (docs/artifact.md)."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

Result = TypeVar("Result")

MEMBER_ALIGNMENT = 1 << 16
"""Pages have up to 64 KiB, so every member can be mapped."""

FIXED_TIME = (1980, 1, 1, 0, 0, 0)
"""The file has no time of writing: the same input gives the same bytes."""

_ZIP64_FIELD = 20
_EXTRA_LIMIT = 0xFFFF - _ZIP64_FIELD

_PADDING_FIELD = 0x6D73
"""Id of the extra field that fills a local header up to the alignment."""


def is_artifact(path: Path) -> bool:
    """Whether the content of the file is an artifact."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "manifest.json" in archive.namelist()
    except (OSError, ValueError, NotImplementedError, struct.error, zipfile.BadZipFile):
        return False


class ArtifactWriter:
    """A ZIP under construction; members are written in the order of the calls."""

    def __init__(self, path: Path, front: int = 0) -> None:
        """Write to `path`, which the caller renames when it is complete.

        front: bytes to leave free before the first member, for `write_front`.
        """
        self._path, self._front = path, front
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._zip.start_dir = front

    def add(self, name: str, data: bytes) -> None:
        """A member from memory."""
        self.stream(name, len(data), lambda member: member.write(data))

    def stream(self, name: str, size: int, write: Callable[[IO[bytes]], Result]) -> Result:
        """A member of known size written by `write`, whose result is returned."""
        info = zipfile.ZipInfo(name, FIXED_TIME)
        info.compress_type = zipfile.ZIP_STORED
        info.external_attr = 0o644 << 16
        info.file_size = size
        zip64 = size * 1.05 > zipfile.ZIP64_LIMIT
        header = 30 + len(name.encode()) + (_ZIP64_FIELD if zip64 else 0)
        gap = -(self._zip.start_dir + header) % MEMBER_ALIGNMENT
        while 0 < gap < 4 or gap > _EXTRA_LIMIT:  # no extra field can be so short or so long: leave a few bytes unused
            self._zip.start_dir += 4
            gap = -(self._zip.start_dir + header) % MEMBER_ALIGNMENT
        if gap:
            info.extra = struct.pack("<HH", _PADDING_FIELD, gap - 4) + bytes(gap - 4)
        with self._zip.open(info, "w", force_zip64=zip64) as member:
            result = write(member)
        info.extra = b""  # the directory, written at the end, needs no padding
        return result

    def close(self) -> None:
        """Write the directory."""
        self._zip.close()

    def pause(self) -> None:
        """Write the directory, so that the file can be read before it is complete."""
        self._zip.close()

    def resume(self) -> None:
        """Continue after `pause`: the next member overwrites the directory."""
        self._zip = zipfile.ZipFile(self._path, "a", zipfile.ZIP_STORED, allowZip64=True)

    def write_front(self, program: bytes) -> None:
        """After `close`: write an executable into the bytes left free, and make the file one."""
        assert len(program) == self._front
        with self._path.open("r+b") as file:
            file.write(program)
        mode = self._path.stat().st_mode
        self._path.chmod(mode | (mode & 0o444) >> 2)  # users who may read it may execute it
