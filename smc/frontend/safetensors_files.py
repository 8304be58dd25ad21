"""The tensors of a folder of safetensors files: headers read now, weights when asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.fields import read_json
from smc.frontend.checkpoint import StoredTensor
from smc.frontend.weights_file import WeightsFile
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
    """The tensors of one file. safetensors checks its header and its length; where they lie is then read from it."""
    from safetensors import SafetensorError, safe_open

    try:
        weights = WeightsFile.of(path)
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_size))
    except FileNotFoundError:
        raise InputError(f"{path} is missing, although the checkpoint says that it holds weights") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or corrupt: {error}") from None
    header.pop("__metadata__", None)
    for name, entry in header.items():
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        if dtype not in ENCODINGS:
            raise InputError(f"{path}: tensor {name} is stored as {dtype}; {', '.join(ENCODINGS)} are supported")
        start, end = entry["data_offsets"]
        read = partial(_read, weights, shape, dtype, 8 + header_size + start, end - start)
        yield StoredTensor(name, shape, ENCODINGS[dtype], read, str(path))


def _read(file: WeightsFile, shape: tuple[int, ...], dtype: str, offset: int, size: int) -> Tensor:
    """One tensor, in memory of its own."""
    import torch

    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return torch.from_numpy(file.read(offset, size)).view(dtypes[dtype]).reshape(shape)
