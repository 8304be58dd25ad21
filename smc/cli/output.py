"""Files that commands write: what must not be replaced without a word."""

from __future__ import annotations

from pathlib import Path

from smc.errors import InputError


def check_replaceable(path: Path, what: str, beginning: bytes) -> None:
    """InputError unless `path` is new, empty, or a file of the kind that is to be written (`what`).

    beginning: the first bytes of such files.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"can't write the {what} to {path}: name a file in a folder that exists")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(beginning)) != beginning:
                raise InputError(f"{path} exists and is no {what} of smc's: name another file")
