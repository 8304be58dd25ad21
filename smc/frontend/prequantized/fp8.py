"""fp8 checkpoints: e4m3 floats with a scale per block of 128 rows and columns, per row, or per matrix. Dequantized.

As transformers' fine-grained fp8 stores them (`weight_scale_inv` multiplies, whatever its name says), and as
compressed-tensors' float-quantized does (`weight_scale`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.frontend.checkpoint import IntegerTensor, StoredTensor
from smc.frontend.config import Config
from smc.frontend.prequantized.registry import Tensors, method
from smc.frontend.prequantized.tensors import Parts
from smc.ir import F32, ceil_div

if TYPE_CHECKING:
    from torch import Tensor

SCALES = ("weight_scale_inv", "weight_scale")
IGNORED = ("input_scale", "activation_scale")
"""Scales of inputs: they stay floats."""


@method("fp8")
def fp8(config: Config, tensors: Tensors) -> Tensors:
    """Floats, the product of value and scale in float32."""
    blocks = config.values.get("weight_block_size")
    if blocks is not None and not (isinstance(blocks, list) and len(blocks) == 2 and all(map(_is_size, blocks))):
        raise config.fault("weight_block_size", "two positive numbers")
    return dequantized(tensors, (blocks[0], blocks[1]) if blocks else None)


def dequantized(tensors: Tensors, blocks: tuple[int, int] | None) -> Tensors:
    """Every matrix of fp8 as floats; InputError if a scale is missing or its shape contradicts the blocks."""
    rest = dict(tensors)
    for parts in Parts.all_of(rest, "weight"):
        stored = rest[f"{parts.module}.weight"]
        if not isinstance(stored, IntegerTensor):
            continue
        weight = parts.take_integers("weight", "F8_E4M3")
        scale = next((found for name in SCALES if (found := parts.take_optional(name)) is not None), None)
        for name in IGNORED:
            parts.take_optional(name)
        if scale is None or len(weight.shape) != 2:
            raise InputError(f"{parts.origin}: {weight.name} lacks {SCALES[0]}, so its quantization can't be undone")
        rows, columns = weight.shape
        block = blocks or (rows, columns)
        shapes = [(ceil_div(rows, block[0]), ceil_div(columns, block[1]))]
        parts.check(scale, *shapes, *([] if blocks else [(), (1,), (rows, 1)]))
        read = partial(_values, weight, scale, block)
        rest[weight.name] = StoredTensor(weight.name, weight.shape, F32, read, parts.origin)
    return rest


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _values(weight: IntegerTensor, scale: StoredTensor, block: tuple[int, int]) -> Tensor:
    values, factors = weight.values().float(), scale.values().float()
    if factors.numel() == 1:
        return values * factors.reshape(())
    rows, columns = values.shape
    if factors.shape == (rows, 1):
        return values * factors
    factors = factors.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return values * factors
