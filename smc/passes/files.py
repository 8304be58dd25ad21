"""Tensors in files of a work folder: each file is complete or does not exist."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, which gets its name when it is complete."""
    from safetensors.torch import save_file

    partial = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in tensors.items()}, partial)
    os.replace(partial, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(path)
    return tensors
