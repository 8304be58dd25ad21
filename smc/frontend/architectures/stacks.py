"""The matrices of experts, each stored by itself, as one stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.frontend.checkpoint import Checkpoint, Coded, StoredTensor
from smc.ir import F32, EncodedTensor

if TYPE_CHECKING:
    from torch import Tensor

NUMBER = "{expert}"
"""Where the names of experts' tensors have the expert's number."""


def stack_name(pattern: str) -> str:
    """The name of the stack of the tensors that a pattern names."""
    return pattern.replace(f".{NUMBER}", "")


def names_of(pattern: str, count: int) -> list[str]:
    """The names of the matrices of a stack."""
    return [pattern.replace(NUMBER, str(number)) for number in range(count)]


def with_stacks(checkpoint: Checkpoint, patterns: Sequence[str], count: int) -> Checkpoint:
    """The checkpoint with `count` matrices in one tensor [count, rows, columns] for each pattern of their names.

    GGUF files have such tensors; and so do folders that hold what transformers has in memory: `gate_up_proj`, where
    gate and up are one after the other, and `down_proj`. InputError where one matrix is missing or of another shape.
    """
    tensors = dict(checkpoint.tensors)
    for pattern in patterns:
        _split(tensors, pattern)
        names = names_of(pattern, count)
        parts = [tensors[name] for name in names if name in tensors]
        if not parts:
            continue
        missing = next((name for name in names if name not in tensors), None)
        if missing is not None:
            raise InputError(f"{checkpoint.config.origin}: the checkpoint lacks the tensor {missing}")
        other = next((part for part in parts if part.shape != parts[0].shape), None)
        if other is not None:
            shapes = f"{list(other.shape)}, {parts[0].name} {list(parts[0].shape)}"
            raise InputError(f"{other.origin}: the experts' matrices differ: {other.name} has the shape {shapes}")
        for name in names:
            del tensors[name]
        tensors[stack_name(pattern)] = _stack(stack_name(pattern), parts)
    return replace(checkpoint, tensors=tensors)


def _split(tensors: dict[str, StoredTensor], pattern: str) -> None:
    """Gate, up or down of what transformers has in memory."""
    whole, _, matrix = stack_name(pattern).removesuffix(".weight").rpartition(".")
    fused = tensors.get(f"{whole}.{'down_proj' if matrix == 'down_proj' else 'gate_up_proj'}")
    if fused is None or len(fused.shape) != 3 or matrix not in ("gate_proj", "up_proj", "down_proj"):
        return
    count, rows, columns = fused.shape
    own = {"gate_proj": range(rows // 2), "up_proj": range(rows // 2, rows)}.get(matrix, range(rows))
    name = stack_name(pattern)
    read = partial(_rows, fused, own)
    tensors[name] = replace(fused, name=name, shape=(count, len(own), columns), read=read, coded=None)
    if matrix != "gate_proj":
        del tensors[fused.name]


def _rows(tensor: StoredTensor, rows: range) -> Tensor:
    return tensor.values()[:, rows.start : rows.stop].contiguous()


def _stack(name: str, parts: Sequence[StoredTensor]) -> StoredTensor:
    shape = (len(parts), *parts[0].shape)
    encoding = parts[0].encoding if all(part.encoding == parts[0].encoding for part in parts) else F32
    return StoredTensor(name, shape, encoding, partial(_values, parts), parts[0].origin, _coded(parts, shape))


def _values(parts: Sequence[StoredTensor]) -> Tensor:
    import torch

    return torch.stack([part.values() for part in parts])


def _coded(parts: Sequence[StoredTensor], shape: tuple[int, ...]) -> Coded | None:
    """The codes of all, where all have them alike; one scale per matrix becomes one for each of its rows."""
    first = parts[0].coded
    if first is None or any(part.coded is None or part.coded.encoding != first.encoding for part in parts):
        return None
    encoding = first.encoding
    if encoding.scales.group == "tensor":
        encoding = replace(encoding, scales=replace(encoding.scales, group="row"))

    def load() -> EncodedTensor:
        loaded = [part.coded.load() for part in parts if part.coded is not None]
        rows = shape[1]
        scales = [data.group_scales() if data.scale_codes is None else data.scales for data in loaded]
        return EncodedTensor(
            encoding,
            shape,
            codes=_joined([data.codes for data in loaded]),
            scales=_joined(scales),
            scale_codes=_joined([data.scale_codes for data in loaded]),
            zeros=_joined([data.zeros for data in loaded]),
            offsets=_joined([None if data.offsets is None else data.offsets.expand(rows, -1) for data in loaded]),
            offset_codes=_joined([data.offset_codes for data in loaded]),
            order=_joined([None if data.order is None else data.order[None] for data in loaded]),
        )

    return Coded(encoding, load)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    import torch

    return None if parts[0] is None else torch.cat([part for part in parts if part is not None])
