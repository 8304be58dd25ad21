"""Checks that an artifact is as it was compiled: reads all of it and compares every member with its checksum."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from smc.errors import InputError
from smc.runtime.artifact import PROGRAM, WEIGHTS, open_artifact, read_manifest
from smc.runtime.manifest import FileFacts

_CHUNK_BYTES = 1 << 20
_FRONT = "the executable in front"


@dataclass(frozen=True)
class VerifiedFile:
    """The number of members that were read, and the bytes in them and in an executable in front."""

    members: int
    bytes: int


def verify_artifact(path: str | Path, advance: Callable[[int], object] = lambda count: None) -> VerifiedFile:
    """Read all of an artifact, for any machine, and compare it with its checksums.

    These are the CRC-32 of every member in the archive's directory, and the SHA-256 that the manifest has of weights,
    program and executable. advance: called with the number of bytes after each part.
    Raises InputError, which names all that is damaged.
    """
    path = Path(path)
    manifest = read_manifest(path)
    expected = {WEIGHTS: manifest.weights, PROGRAM: manifest.program}
    damaged, total = [], 0
    with open_artifact(path) as archive:
        members = archive.infolist()
        for member in members:
            try:
                with archive.open(member) as file:
                    sound = _has(file, member.file_size, expected.get(member.filename), advance)
            except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, struct.error):
                sound = False
            total += member.file_size
            if not sound:
                damaged.append(member.filename)
    damaged += sorted(expected.keys() - {member.filename for member in members})
    if (front := manifest.executable) is not None:
        with path.open("rb") as file:
            if not _has(file, front.bytes, front, advance):
                damaged.append(_FRONT)
        total += front.bytes
    if damaged:
        raise InputError(f"{path} is damaged: its checksums do not fit {', '.join(damaged)}; copy or compile it again")
    return VerifiedFile(len(members), total)


def _has(file: IO[bytes], size: int, expected: FileFacts | None, advance: Callable[[int], object]) -> bool:
    """Whether the first `size` bytes of the file have the expected SHA-256."""
    digest, left = hashlib.sha256(), size
    while left and (part := file.read(min(left, _CHUNK_BYTES))):
        digest.update(part)
        left -= len(part)
        advance(len(part))
    return not left and (expected is None or (digest.hexdigest(), size) == (expected.sha256, expected.bytes))
