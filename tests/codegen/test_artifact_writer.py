"""Members of artifacts begin at multiples of 64 KiB, whatever lies before them."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from smc.codegen.artifact import MEMBER_ALIGNMENT, ArtifactWriter


def data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin, read from its local header."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + name + extra


# The second header begins where the first member ends: every remainder that leaves too small a gap, and its neighbours.
@pytest.mark.parametrize("rest", [*range(MEMBER_ALIGNMENT - 48, MEMBER_ALIGNMENT + 4), 0, 1, 17, 65515, 65516])
def test_members_are_aligned(tmp_path: Path, rest: int) -> None:
    path = tmp_path / "artifact"
    writer = ArtifactWriter(path)
    writer.add("first", bytes(rest))
    assert writer.stream("second", 5, lambda out: str(out.write(b"hello"))) == "5"
    writer.close()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("second") == b"hello"
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert data_offset(path, info) % MEMBER_ALIGNMENT == 0
