"""The tensors of a folder of safetensors files: headers read now, weights when asked."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.frontend.checkpoint import StoredTensor
from smc.frontend.config import read_json
from smc.ir import BF16, F16, F32

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ENCODINGS = {"F32": F32, "F16": F16, "BF16": BF16}
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def folder_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by name.

    Reads model.safetensors, or the shards that model.safetensors.index.json lists. InputError where a file is missing,
    truncated, corrupt or outside the folder; weights that exist only pickled are refused, never unpickled.
    """
    if (folder / INDEX).exists():
        return _sharded(folder)
    if (folder / SINGLE).exists():
        return {tensor.name: tensor for tensor in _tensors(folder / SINGLE)}
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled:
        raise InputError(
            f"{folder} has only pickled weights ({pickled[0]}), which can run code: convert to safetensors"
        )
    raise InputError(f"{folder} has neither {SINGLE} nor {INDEX}")


def _sharded(folder: Path) -> dict[str, StoredTensor]:
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(shard, str) for shard in index.values()):
        raise InputError(f"{folder / INDEX} has no weight_map from tensor names to file names")
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(index.values())):
        place = PurePosixPath(shard)
        if place.is_absolute() or ".." in place.parts or "\0" in shard:
            raise InputError(f"{folder / INDEX} points outside its folder, to {shard!r}")
        found.update((tensor.name, tensor) for tensor in _tensors(folder / place) if index.get(tensor.name) == shard)
    for name, shard in index.items():
        if name not in found:
            raise InputError(f"{folder / shard} lacks the tensor {name} that {INDEX} says it holds")
    return found


def _tensors(path: Path) -> Iterator[StoredTensor]:
    """The tensors of one file. Its header says shapes and dtypes; safetensors checks the file's length against it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (a file, not a dict)
            headers = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except FileNotFoundError:
        raise InputError(f"{path} is missing, although the checkpoint says that it holds weights") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or corrupt: {error}") from None
    for name, (shape, dtype) in headers.items():
        if dtype not in ENCODINGS:
            raise InputError(f"{path}: tensor {name} is stored as {dtype}; {', '.join(ENCODINGS)} are supported")
        yield StoredTensor(name, shape, ENCODINGS[dtype], partial(_read, path, name), str(path))


def _read(path: Path, name: str) -> Tensor:
    """One tensor, backed by mapped pages that go with it: the file is opened anew every time, nothing stays."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} can no longer be read: {error}") from None
