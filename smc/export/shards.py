"""Writes safetensors files one tensor at a time: https://huggingface.co/docs/safetensors/index#format"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smc.export.tensors import Stored

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 4 << 30


def write_shards(
    folder: Path,
    tensors: Sequence[Stored],
    progress: Callable[[float], None] = lambda fraction: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write model.safetensors, or several files with an index; memory holds one tensor at a time."""
    shards: list[list[Stored]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.bytes for t in shards[-1]) + tensor.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    total, done = sum(tensor.bytes for tensor in tensors), 0
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for tensor in shard:
                file.write(_bytes(tensor))
                index[tensor.name] = name
                done += tensor.bytes
                progress(done / total)
    if len(shards) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _header(tensors: Sequence[Stored]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.bytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Stored) -> bytes:
    import torch

    values: Tensor = tensor.load()
    if tuple(values.shape) != tensor.shape:
        raise ValueError(f"{tensor.name} has shape {list(values.shape)}, not {list(tensor.shape)}")
    return values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
