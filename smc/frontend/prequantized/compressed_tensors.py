"""compressed-tensors, which LLM Compressor writes: pack-quantized, int-quantized, float-quantized (fp8) and mxfp4.

pack-quantized: weight_packed int32 [rows, words], dense from the lowest bit of a row on, the code being value +
2**(bits-1); weight_shape [2]; weight_zero_point packed likewise along the rows. int-quantized: weight int8.
weight_scale [rows, groups]; weight_g_idx [columns], the group of every column. A weight is scale · (value - zero).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from smc.errors import InputError
from smc.fields import COUNT, Range
from smc.frontend.checkpoint import IntegerTensor, StoredTensor
from smc.frontend.config import Config
from smc.frontend.prequantized.fp8 import dequantized
from smc.frontend.prequantized.mxfp4 import packed
from smc.frontend.prequantized.registry import Tensors, method
from smc.frontend.prequantized.tensors import Groups, Parts, scale_type, unpack
from smc.ir import EncodedTensor, Encoding, ceil_div

if TYPE_CHECKING:
    from torch import Tensor

BITS = Range(1, 8, "a number of bits from 1 to 8")
FORMATS = ("pack-quantized", "int-quantized", "float-quantized")


@method("compressed-tensors")
def compressed_tensors(config: Config, tensors: Tensors) -> Tensors:
    """Codes stay codes; inputs are rounded to int8 per token where the config says so."""
    if config.text("format", "") == "float-quantized":
        return dequantized(tensors, None)
    if config.text("format", "") == "mxfp4-pack-quantized":
        return packed(tensors)
    schemes = [_Scheme.read(config, name) for name in config.section("config_groups").values]
    rest = dict(tensors)
    for part in ("weight_packed", "weight"):
        for parts in Parts.all_of(rest, part):
            if isinstance(rest[f"{parts.module}.{part}"], IntegerTensor):
                scheme = next((s for s in schemes if s.holds_for(parts.module)), None)
                if scheme is None:
                    raise InputError(
                        f"{parts.origin}: {parts.module} is quantized, but no group of the quantization_config names it"
                    )
                found = _matrix(parts, scheme, is_packed=part == "weight_packed")
                rest[found.name] = found
    return rest


@dataclass(frozen=True)
class _Scheme:
    """A group of the config: which modules it is for, and how they are stored."""

    targets: tuple[str, ...]
    bits: int
    group: int | Literal["row", "tensor"]
    per_token: bool

    @classmethod
    def read(cls, config: Config, name: str) -> _Scheme:
        section = config.section("config_groups").section(name)
        layout = section.text("format", config.text("format"))
        if layout not in FORMATS:
            raise InputError(
                f"{section.origin}: the format {layout} of compressed-tensors is not supported; "
                f"supported are {', '.join(FORMATS)}"
            )
        weights = section.section("weights")
        if weights.text("type", "int") != "int":
            raise weights.fault("type", "int")
        strategy = weights.text("strategy", "group" if "group_size" in weights else "tensor")
        groups: dict[str, int | Literal["row", "tensor"]] = {"channel": "row", "tensor": "tensor"}
        if strategy == "group":
            groups["group"] = weights.integer("group_size", within=COUNT)
        if strategy not in groups:
            raise weights.fault("strategy", "group, channel or tensor")
        inputs = section.section("input_activations")
        if "num_bits" in inputs and (inputs.integer("num_bits"), inputs.text("type", "int")) != (8, "int"):
            raise InputError(f"{inputs.origin}: inputs are rounded to {inputs.values}, supported is int of 8 bits")
        bits = weights.integer("num_bits", within=BITS)
        return cls(section.texts("targets"), bits, groups[strategy], "num_bits" in inputs)

    def holds_for(self, module: str) -> bool:
        """Whether a target names this module: by its class, its name, or a regular expression after "re:"."""
        for target in self.targets:
            try:
                if target.startswith("re:") and re.match(target[3:], module):
                    return True
            except re.error as error:
                raise InputError(f"the target {target!r} is not a regular expression: {error}") from None
            if target == "Linear" or module == target or module.endswith(f".{target}"):
                return True
        return False


def _matrix(parts: Parts, scheme: _Scheme, is_packed: bool) -> StoredTensor:
    words = parts.take_integers("weight_packed" if is_packed else "weight", "I32" if is_packed else "I8")
    scales, zeros = parts.take("weight_scale"), parts.take_optional("weight_zero_point")
    index = parts.take_optional("weight_g_idx")
    if len(words.shape) != 2:
        raise InputError(f"{parts.origin}: {words.name} has shape {list(words.shape)}, expected a matrix")
    rows, columns, per_word = *words.shape, 32 // scheme.bits
    if is_packed:
        sizes = parts.take_integers("weight_shape", "I32", "I64").values().tolist()
        columns = int(sizes[-1]) if len(sizes) == 2 else 0
        parts.check(words, (int(sizes[0]), ceil_div(columns * scheme.bits, 32)), (rows, ceil_div(columns, per_word)))
    is_dense = not is_packed or words.shape[1] == ceil_div(columns * scheme.bits, 32)
    size: int | Literal["row"] = "row"
    if isinstance(scheme.group, int) and scheme.group < columns:
        size = scheme.group
    groups = Groups(size, columns, index if isinstance(index, IntegerTensor) and index.values().min() >= 0 else None)
    if groups.index is not None:
        parts.check(groups.index, (columns,))
    shapes = [(1,), (1, 1)] if scheme.group == "tensor" else [(rows, groups.count), *[(rows,)] * (groups.count == 1)]
    parts.check(scales, *shapes)
    if zeros is not None and not isinstance(zeros, IntegerTensor):
        raise InputError(f"{parts.origin}: {zeros.name} holds floats, expected integers")
    if zeros is not None and scheme.group == "tensor":
        raise InputError(f"{parts.origin}: {zeros.name} is a zero of a whole tensor, which is not supported")
    if zeros is not None:
        packed = ceil_div(rows * scheme.bits, 32), ceil_div(rows, per_word)
        parts.check(zeros, scales.shape, *((words, groups.count) for words in packed))
    encoding = Encoding.of(
        bits=scheme.bits,
        zero="stored" if zeros is not None else None,
        group="tensor" if scheme.group == "tensor" else groups.size,
        scale_dtype=scale_type(scales),
        permuted=groups.order is not None,
        activation_group="token" if scheme.per_token else 32,
    )
    load = partial(_load, encoding, groups, words, scales, zeros, is_dense)
    return parts.coded((rows, columns), encoding, load)


def _load(
    encoding: Encoding,
    groups: Groups,
    words: IntegerTensor,
    scales: StoredTensor,
    zeros: IntegerTensor | None,
    is_dense: bool,
) -> EncodedTensor:
    rows, bits = words.shape[0], encoding.bits
    codes = _codes(words.values(), bits, is_dense)[:, : groups.columns]
    found = None
    if zeros is not None and zeros.dtype == "I32" and zeros.shape[0] != rows:
        found = _codes(zeros.values().T, bits, is_dense)[:, :rows].T.contiguous()
    elif zeros is not None:
        found = _codes(zeros.values().reshape(rows, -1), bits, is_dense)
    return EncodedTensor(
        encoding,
        (rows, groups.columns),
        codes=groups.stored(codes),
        scales=scales.values().float().reshape(1 if encoding.scales.group == "tensor" else rows, -1),
        zeros=found if encoding.stores_zeros else None,
        order=groups.order,
    )


def _codes(values: Tensor, bits: int, is_dense: bool) -> Tensor:
    """uint8 [n, columns or more]: values + 2**(bits-1), of packed int32 or plain int8 [n, …]."""
    import torch

    if values.dtype == torch.int8:
        return (values.to(torch.int16) + (1 << bits - 1)).to(torch.uint8)
    if is_dense:
        padding = -values.shape[1] % bits  # whole cycles of `bits` words
        return unpack(torch.nn.functional.pad(values, (0, padding)), bits)
    shifts = torch.arange(32 // bits, dtype=torch.int32) * bits
    return (values[..., None] >> shifts & (1 << bits) - 1).flatten(1).to(torch.uint8)
