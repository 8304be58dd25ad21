"""Finds out whether a source is a folder, a GGUF file or a hub id."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from smc.errors import InputError
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.files import check_is_no_pointer

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Find out what `source` is and open it; InputError if nothing of that name exists."""
    from smc.frontend import hub, huggingface

    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return replace(huggingface.open_folder(path), source=path)
        if path.is_file():
            return replace(_open_file(path), source=path)
    except OSError as error:  # not allowed to look, name too long
        if error.errno is None:  # a library's, such as torch's where memory is short
            raise
        raise InputError(f"can't open {source}: {error.strerror}") from None
    if isinstance(source, str) and HUB_ID.fullmatch(source):
        folder = hub.download(source)
        return replace(huggingface.open_folder(folder, name=source.split("/")[1]), source=folder)
    raise InputError(f"{source} does not exist: give a checkpoint folder, a .gguf file or a hub id like org/name")


def _open_file(path: Path) -> Checkpoint:
    from smc.frontend import gguf_checkpoint

    check_is_no_pointer(path)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        return gguf_checkpoint.open_gguf(path)
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise InputError(f"{path} is one file of a checkpoint: give the folder that it lies in")
    raise InputError(f"{path} is not a checkpoint: give a folder in the Hugging Face layout, a .gguf file or a hub id")
