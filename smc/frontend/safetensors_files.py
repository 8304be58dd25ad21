"""The tensors of a folder of safetensors files: headers are read now, weights when they are needed."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from smc.errors import InputError, Notice
from smc.frontend.checkpoint import IntegerTensor, StoredTensor
from smc.frontend.config import Config
from smc.frontend.files import check_is_no_pointer, read_json
from smc.frontend.weights_file import WeightsFile
from smc.ir import BF16, F16, F32

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
INDEX_SUFFIX = ".safetensors.index.json"
ENCODINGS = {"F32": F32, "F16": F16, "BF16": BF16}
INTEGERS = ("U8", "I8", "I16", "I32", "I64", "F8_E4M3", "F8_E8M0")
"""Types in which quantization methods store codes. fp8 counts as one, because it has no meaning without its scales; of
powers of two the exponents are read."""
LARGEST_HEADER = 100 << 20
"""Bytes; the safetensors library refuses more."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def folder_tensors(folder: Path, config: Config, integers: bool = False) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by name, out of the files that transformers takes.

    These are the file or the index that the config names (`transformers_weights`), else model.safetensors, else the
    shards that model.safetensors.index.json lists; a Notice says which others are left out. InputError if a file is
    missing, truncated, corrupt or outside the folder; weights that exist only pickled are refused, never unpickled.
    """
    usual = [name for name in (SINGLE, INDEX) if (folder / name).is_file()]
    chosen = config.text("transformers_weights", "") or "".join(usual[:1])
    if not chosen:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
        if pickled:
            raise InputError(
                f"{folder} has only pickled weights ({pickled[0]}), which can run code: convert to safetensors"
            )
        raise InputError(f"{folder} has neither {SINGLE} nor {INDEX}")
    if not chosen.endswith((".safetensors", INDEX_SUFFIX)):
        raise config.fault("transformers_weights", f"a .safetensors file or a {INDEX_SUFFIX} file")
    path = _inside(folder, chosen, config.origin)
    if chosen.endswith(INDEX_SUFFIX):
        index = _index(path)
        _tell_left_out(folder, chosen, index.values())
        return _sharded(path, index, integers)
    _tell_left_out(folder, chosen)
    return {tensor.name: tensor for tensor in file_tensors(path, integers)}


def _inside(folder: Path, name: str, origin: str) -> Path:
    """A file of the folder that `origin` names."""
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or "\0" in name:
        raise InputError(f"{origin} points outside its folder, to {name!r}")
    return folder / place


def _tell_left_out(folder: Path, chosen: str, shards: Iterable[str] = ()) -> None:
    """Report files that are left out: old weights beside new ones are a mistake that nothing else would show."""
    names = (p.name for p in folder.iterdir() if p.name.endswith((".safetensors", INDEX_SUFFIX)) and p.is_file())
    others = sorted(set(names) - {chosen, *shards}, key=lambda name: (len(name), name))  # the index before shards
    if others:
        more = f" and {len(others) - 2} more" if len(others) > 2 else ""
        left_out = f"{', '.join(others[:2])}{more}"
        warnings.warn(f"the weights are those of {folder / chosen}; left out: {left_out}", Notice, stacklevel=2)


def _index(path: Path) -> dict[str, str]:
    """Tensor name → shard."""
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(shard, str) for shard in index.values()):
        raise InputError(f"{path} has no weight_map from tensor names to file names")
    return index


def _sharded(path: Path, index: dict[str, str], integers: bool) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(index.values())):
        tensors = file_tensors(_inside(path.parent, shard, str(path)), integers)
        found.update((tensor.name, tensor) for tensor in tensors if index.get(tensor.name) == shard)
    for name, shard in index.items():
        if name not in found:
            raise InputError(f"{path.parent / shard} lacks the tensor {name} that {path.name} says it holds")
    return found


def file_tensors(path: Path, integers: bool = False) -> Iterator[StoredTensor]:
    """The tensors of one safetensors file, not read yet; InputError if it is broken.

    safetensors checks its header and its length; where they lie is then read from it.
    integers: whether there may be tensors of integers, of which a quantization method makes weights.
    """
    check_is_no_pointer(path)
    weights = WeightsFile.of(path)
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        text = file.read(min(header_size, LARGEST_HEADER))
    _check_header(path, header_size, text, weights.size)
    header = json.loads(text)
    header.pop("__metadata__", None)
    for name, entry in header.items():
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        if dtype not in (*ENCODINGS, *(INTEGERS if integers else ())):
            raise InputError(f"{path}: tensor {name} is stored as {dtype}; {', '.join(ENCODINGS)} are supported")
        start, end = entry["data_offsets"]
        read = partial(_read, weights, shape, dtype, 8 + header_size + start, end - start)
        if dtype in INTEGERS:
            yield IntegerTensor(name, shape, F32, read, str(path), dtype=dtype)
        else:
            yield StoredTensor(name, shape, ENCODINGS[dtype], read, str(path))


def _check_header(path: Path, header_size: int, text: bytes, file_size: int) -> None:
    """InputError if the safetensors library refuses a file of this size that begins with this header.

    It maps the file that it is given, which not all file systems can do: what it refuses is judged once more by a file
    in memory that has the same header and size, and holes for weights.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return
    except (SafetensorError, OSError) as error:
        found: Exception = error
    with contextlib.suppress(OSError), open(os.memfd_create("header"), "wb", buffering=0) as twin:
        twin.truncate(file_size)
        twin.write((header_size.to_bytes(8, "little") + text)[:file_size])
        try:
            with safe_open(f"/proc/self/fd/{twin.fileno()}", framework="numpy"):
                return
        except SafetensorError as error:
            found = error
    if isinstance(found, OSError):  # the system refused something, such as memory: that is no damage
        raise found
    raise InputError(f"{path} is truncated or corrupt: {found}")


def _read(file: WeightsFile, shape: tuple[int, ...], dtype: str, offset: int, size: int) -> Tensor:
    """One tensor, in memory of its own."""
    import torch

    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8, "I8": torch.int8}
    dtypes.update({"I16": torch.int16, "I32": torch.int32, "I64": torch.int64})
    dtypes.update({"F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.uint8})
    return torch.from_numpy(file.read(offset, size)).view(dtypes[dtype]).reshape(shape)
