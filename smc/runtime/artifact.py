"""Reads an artifact: a ZIP file with stored members, which `smc compile` writes (docs/artifact.md).

Only the manifest, the program and the tokenizer are read here; the weights are mapped by the engine.
"""

from __future__ import annotations

import hashlib
import platform
import struct
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from smc.errors import InputError
from smc.runtime.manifest import MANIFEST, Manifest

WEIGHTS = "weights"
PROGRAM = "program.so"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"

_MAX_MANIFEST_BYTES = 64 << 20
_MAX_MEMBER_BYTES = 1 << 30  # limit of members that are read into memory: program, tokenizer, chat template
_MAX_MEMBERS = 1000


@dataclass(frozen=True)
class Artifact:
    """An artifact's facts and texts, checked; open one with `read_artifact`.

    path: the file. manifest: as in docs/artifact.md. program: the bytes of program.so.
    tokenizer: text of a `tokenizers` JSON file, or None. chat_template: jinja source, or None.
    """

    path: Path
    manifest: Manifest
    program: bytes
    tokenizer: str | None
    chat_template: str | None


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of an artifact for any machine, checked. Raises InputError if the artifact is damaged."""
    with open_artifact(Path(path)) as archive:
        return _manifest(Path(path), archive)


def read_artifact(path: str | Path) -> Artifact:
    """Read an artifact for this machine. Raises InputError if it can't run here or is damaged."""
    path = Path(path)
    with open_artifact(path) as archive:
        manifest = _manifest(path, archive)
        check_machine(path, manifest)
        program = _read(path, archive, PROGRAM, _MAX_MEMBER_BYTES)
        if hashlib.sha256(program).hexdigest() != manifest.program.sha256:
            raise InputError(
                f"{path} is damaged: {PROGRAM} is not the program that its manifest names; copy or compile it again"
            )
        texts = {}
        for member in (TOKENIZER, CHAT_TEMPLATE):
            present = member in archive.namelist()
            texts[member] = _text(path, archive, member, _MAX_MEMBER_BYTES) if present else None
    return Artifact(path, manifest, program, texts[TOKENIZER], texts[CHAT_TEMPLATE])


def check_machine(path: Path, manifest: Manifest) -> None:
    """Raise InputError unless the artifact of this manifest is compiled for this kind of machine and this system."""
    # Python before 3.13 calls Android Linux.
    system = "Android" if hasattr(sys, "getandroidapilevel") else platform.system()
    machine = platform.machine()
    if (manifest.machine, manifest.system) != (machine, system):
        target = f"{manifest.target} ({manifest.system}, {manifest.machine})"
        raise InputError(
            f"{path} is compiled for {target}, this machine is {system}, {machine}; "
            "compile it again with the --target for this machine (smc targets lists them)"
        )


def open_artifact(path: Path) -> zipfile.ZipFile:
    """The ZIP, with its directory checked against the file's size. Raises InputError if the file is not a ZIP."""
    try:
        if not path.is_file() and path.exists() and not path.is_dir():
            raise InputError(f"{path} is not an smc artifact: it is not a regular file")
        with path.open("rb") as file:
            start = file.read(8)
            size = file.seek(0, 2)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; make an artifact with: smc compile MODEL -o {path}") from None
    except IsADirectoryError:
        raise InputError(
            f"{path} is a folder, not an artifact; compile it first: smc compile {path} -o model.smc"
        ) from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from None
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error):
        raise InputError(_not_an_archive(path, start)) from None
    try:
        _check_members(path, archive, size)
    except BaseException:
        archive.close()
        raise
    return archive


def _not_an_archive(path: Path, start: bytes) -> str:
    """The sentence for a file without a ZIP directory at its end."""
    if start[:4] in (b"PK\x03\x04", b"\x7fELF"):
        return f"{path} is incomplete: the directory at its end is missing; copy or compile it again"
    if start[:4] == b"GGUF" or path.suffix in (".safetensors", ".bin", ".pt"):
        return f"{path} is a checkpoint, not an artifact; compile it first: smc compile {path} -o model.smc"
    return f"{path} is not an smc artifact; make one with: smc compile MODEL -o model.smc"


def _check_members(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    """Check that members are stored, not encrypted, named once, and inside the file."""
    members = archive.infolist()
    if MANIFEST not in archive.namelist():
        raise InputError(f"{path} is a ZIP but not an smc artifact: it has no {MANIFEST}")
    if len(members) > _MAX_MEMBERS:
        raise InputError(f"{path} is damaged: it has {len(members)} members, more than an artifact may have")
    if len({member.filename for member in members}) != len(members):
        raise InputError(f"{path} is damaged: a member's name occurs twice")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise InputError(f"{path} was repacked: {member.filename} is compressed or encrypted, artifacts are stored")
        if member.header_offset < 0 or member.header_offset + member.file_size > size:
            raise InputError(f"{path} is incomplete: {member.filename} ends after the file's end; copy it again")


def _read(path: Path, archive: zipfile.ZipFile, member: str, limit: int) -> bytes:
    """A member's bytes, with its checksum checked."""
    try:
        if archive.getinfo(member).file_size > limit:
            raise InputError(f"{path} is damaged: {member} is larger than {limit >> 20} MiB")
        return archive.read(member)
    except KeyError:
        raise InputError(f"{path} is damaged: it has no {member}") from None
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, struct.error):
        raise InputError(f"{path} is damaged: {member} can't be read; copy or compile it again") from None


def _text(path: Path, archive: zipfile.ZipFile, member: str, limit: int) -> str:
    try:
        return _read(path, archive, member, limit).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is damaged: {member} is not UTF-8 text") from None


def _manifest(path: Path, archive: zipfile.ZipFile) -> Manifest:
    """The manifest, with its version, types and ranges checked."""
    return Manifest.parse(_text(path, archive, MANIFEST, _MAX_MANIFEST_BYTES), path)
