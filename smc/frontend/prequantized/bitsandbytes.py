"""bitsandbytes: nf4 and fp4 with a scale per block of the flattened matrix, and int8 with a scale per row.

`weight` uint8 [n / 2, 1] has two codes per byte, the first in the upper half; `weight.quant_map` f32 [16] the values of
codes; `weight.absmax` the scales of blocks, f32, or codes (uint8) into `weight.nested_quant_map` times
`weight.nested_absmax` plus an offset, which `weight.quant_state.bitsandbytes__nf4` holds as JSON. int8: `SCB` f32
[rows], 127 times the scale. Blocks that lie in rows stay codes; else the matrix is dequantized.
Dettmers et al., "QLoRA" (2023); Dettmers et al., "LLM.int8()" (2022)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.fields import Fields, parse_json
from smc.frontend.checkpoint import IntegerTensor, StoredTensor
from smc.frontend.config import Config
from smc.frontend.prequantized.registry import Tensors, method
from smc.frontend.prequantized.tensors import Parts
from smc.ir import F32, EncodedTensor, Encoding, ceil_div

if TYPE_CHECKING:
    from torch import Tensor

STATE = "weight.quant_state.bitsandbytes__"
INT8 = Encoding.of(bits=8, group="row", scale_dtype="f32", activation="none")


@method("bitsandbytes")
def bitsandbytes(config: Config, tensors: Tensors) -> Tensors:
    """Codes, or floats where blocks of scales cross rows."""
    rest = dict(tensors)
    for parts in Parts.all_of(rest, "SCB"):
        weight, scale = parts.take_integers("weight", "I8"), parts.take("SCB")
        parts.check(scale, (weight.shape[0],))
        parts.take_optional("weight_format")
        shape = (weight.shape[0], weight.shape[1])
        rest[weight.name] = parts.coded(shape, INT8, partial(_int8, weight, scale))
    for name in [name for name in rest if STATE in name]:
        module, _, kind = name.partition(f".{STATE}")
        found = _four_bits(Parts(module, rest, rest[name].origin), kind)
        rest[found.name] = found
    return rest


def _int8(weight: IntegerTensor, scale: StoredTensor) -> EncodedTensor:
    import torch

    codes = weight.values().to(torch.int16).add(128).to(torch.uint8)[:, None, :].contiguous()
    return EncodedTensor(INT8, weight.shape, codes=codes, scales=(scale.values().float() / 127).reshape(-1, 1))


def _four_bits(parts: Parts, kind: str) -> StoredTensor:
    weight, state = parts.take_integers("weight", "U8"), _state(parts, kind)
    shape, block = _shape_of(state), state.integer("blocksize")
    count = shape[0] * shape[1]
    if weight.shape[0] * 2 != count + count % 2:
        raise InputError(
            f"{parts.origin}: {weight.name} has {weight.shape[0]} bytes, too few or many for {list(shape)}"
        )
    levels = tuple(parts.take("weight.quant_map").values().float().tolist())
    load_scales = _scales(parts, state, ceil_div(count, block))
    if len(levels) != 16:
        raise InputError(f"{parts.origin}: {parts.module} has {len(levels)} values of codes, expected 16")
    if shape[1] % block:
        read = partial(_values, weight, load_scales, levels, shape, block)
        return StoredTensor(weight.name, shape, F32, read, parts.origin)
    encoding = Encoding.of(bits=4, codebook=levels, grid="f32", group=block, scale_dtype="f32", activation="none")

    def load() -> EncodedTensor:
        codes = _codes(weight)[:count].reshape(shape[0], -1, block).contiguous()
        return EncodedTensor(encoding, shape, codes=codes, scales=load_scales().reshape(shape[0], -1))

    return parts.coded(shape, encoding, load)


def _state(parts: Parts, kind: str) -> Fields:
    """The JSON in a tensor of bytes."""
    stored = parts.take_integers(f"{STATE}{kind}", "U8")
    text = bytes(stored.values().tolist()).decode("utf-8", "replace")
    return Fields(parse_json(text, stored.name), f"{stored.origin}: {stored.name}")


def _shape_of(state: Fields) -> tuple[int, int]:
    shape = state.items("shape")
    if len(shape) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise state.fault("shape", "two positive numbers")
    return shape[0], shape[1]


def _scales(parts: Parts, state: Fields, count: int) -> partial[Tensor]:
    """Of every block, float32 [count], when called."""
    nested = parts.take_optional("weight.nested_absmax")
    if nested is None:
        absmax = parts.take("weight.absmax")
        parts.check(absmax, (count,))
        return partial(_plain, absmax)
    codes, levels = parts.take_integers("weight.absmax", "U8"), parts.take("weight.nested_quant_map")
    block, offset = state.integer("nested_blocksize"), state.values.get("nested_offset", 0.0)
    if not isinstance(offset, (int, float)) or isinstance(offset, bool):
        raise state.fault("nested_offset", "a number")
    parts.check(codes, (count,))
    parts.check(nested, (ceil_div(count, block),))
    parts.check(levels, (256,))
    return partial(_nested, codes, levels, nested, block, float(offset))


def _plain(absmax: StoredTensor) -> Tensor:
    return absmax.values().float()


def _nested(codes: IntegerTensor, levels: StoredTensor, nested: StoredTensor, block: int, offset: float) -> Tensor:
    outer = nested.values().float().repeat_interleave(block)[: len(codes.values())]
    return levels.values().float()[codes.values().int()] * outer + offset


def _codes(weight: IntegerTensor) -> Tensor:
    """uint8 [n]: the upper half of every byte first."""
    import torch

    octets = weight.values().reshape(-1)
    return torch.stack((octets >> 4, octets & 15), dim=1).reshape(-1)


def _values(
    weight: IntegerTensor, load_scales: partial[Tensor], levels: tuple[float, ...], shape: tuple[int, int], block: int
) -> Tensor:
    import torch

    count = shape[0] * shape[1]
    scales = load_scales().repeat_interleave(block)[:count]
    return (torch.tensor(levels)[_codes(weight)[:count].int()] * scales).reshape(shape)
