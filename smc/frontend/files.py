"""Reads the small files of a checkpoint, JSON and text, and refuses what is neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smc.errors import InputError
from smc.fields import parse_json

POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of a file that git leaves in the place of a large one (git-lfs, docs/spec.md)."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError if the file can't be read or holds something else."""
    return parse_json(read_text(path), str(path))


def read_optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no file."""
    return read_json(path) if path.exists() else {}


def read_text(path: Path) -> str:
    """A UTF-8 file; InputError if it can't be read, is not a text, or is a git-lfs pointer."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    if data.startswith(POINTER):
        raise pointer(path)
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from None


def check_is_no_pointer(path: Path) -> None:
    """Raise InputError if git left a pointer in the place of a large file, or where the file can't be read."""
    try:
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except OSError as error:
        raise unreadable(path, error) from None
    if start == POINTER:
        raise pointer(path)


def unreadable(path: Path, error: OSError) -> InputError:
    """The sentence for a file that the system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} is missing, although the checkpoint needs it")
    return InputError(f"can't read {path}: {error.strerror}")


def pointer(path: Path) -> InputError:
    """The sentence for a git-lfs pointer."""
    return InputError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder")
