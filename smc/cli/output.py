"""Checks files that commands write, so that they replace nothing by mistake."""

from __future__ import annotations

import os
from pathlib import Path

from smc.errors import InputError


def check_replaceable(path: Path, what: str, beginning: bytes) -> None:
    """Raise InputError unless `path` is new, empty, or a file of the kind to write (`what`).

    beginning: the first bytes of such files.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"can't write the {what} to {path}: name a file in a folder that exists")
    if path.exists() and not path.is_file():
        raise InputError(f"can't write the {what} to {path}: it is not a regular file")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise InputError(f"can't write the {what} to {path}: permission denied")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(beginning)) != beginning:
                raise InputError(f"{path} exists and holds something else than the {what}: name another file")
