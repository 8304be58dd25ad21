"""Quantization formats as data: an `Encoding` says everything a kernel needs to know about stored numbers.

A matrix [rows, columns] is stored as unsigned integer *codes* in groups along the columns, each group with a scale and
perhaps a zero or an offset. A code is decoded in one of three ways::

    value = scale * (code - zero)           integers; `zero` is one constant or stored a group
    value = scale * code + offset           integers with a stored float minimum (as in Q4_1)
    value = scale * levels[code]            a codebook, on an int8 grid or in floats

Float tensors (f32, f16, bf16) are encodings too: they have neither groups nor scales.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from smc.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Encoding:
    """How the values of one tensor are stored and decoded, and how the activations that meet it are rounded.

    storage: "f32", "f16" or "bf16" (plain floats), "packed" (1 to 8 bits a code) or "base3" (5 ternary codes a byte).
    bits: width of a packed code; for floats and base3 it follows from the storage.
    zero: the code of the value 0: a constant, "group" (stored, one unsigned integer a group), or None where
        `offset` or `levels` take its place. Left out, it is the middle code, 2**(bits-1).
    offset: a float minimum is stored for every group.
    levels: the codebook; `grid` says whether it is exact on int8 ("i8", integer dot products) or float ("f16", "f32").
    group: how many neighbouring columns share a scale; "row": the whole row; "tensor": everything.
    scale_dtype: dtype of the scales (and offsets).
    super_group: that many scales are stored as 8-bit codes times one scale of `scale_dtype` (two-level scales).
    permuted: columns are stored in an order of their own (act-order); the order is kept with the tensor.
    rotation: stored columns, and so the input, are rotated: blocks of that many by a Hadamard matrix (`rotate`). A
        power of two that divides the columns, or None.
    activation: "i8" (inputs are rounded to int8, symmetric) or "none" (float inputs). Part of the encoding, because
        trained models depend on it.
    activation_group: how many neighbouring inputs share an activation scale; "token": all of them.
    """

    storage: Literal["packed", "base3", "f32", "f16", "bf16"] = "packed"
    bits: int = 0
    zero: int | Literal["group"] | None = None
    offset: bool = False
    levels: tuple[float, ...] | None = None
    grid: Literal["i8", "f16", "f32"] | None = None
    group: int | Literal["row", "tensor"] = 32
    scale_dtype: Literal["f16", "bf16", "f32"] = "f16"
    super_group: int | None = None
    permuted: bool = False
    rotation: int | None = None
    activation: Literal["none", "i8"] | None = None
    activation_group: int | Literal["token"] = 32

    def __post_init__(self) -> None:
        def settle(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if self.is_float:
            settle("bits", 8 * FLOAT_BYTES[self.storage])
            settle("group", "tensor")
            settle("activation", self.activation or "none")
            return
        if self.storage == "base3":
            settle("bits", 2)
        if not 1 <= self.bits <= 8:
            raise InputError(f"an encoding has 1 to 8 bits a code, not {self.bits}")
        if self.levels is not None:
            self._settle_levels()
        elif self.offset:
            if self.zero is not None:
                raise InputError("an encoding has a zero or an offset, not both")
        elif self.zero is None:
            settle("zero", 1 if self.storage == "base3" else 1 << (self.bits - 1))
        if isinstance(self.zero, int) and not 0 <= self.zero < 1 << self.bits:
            raise InputError(f"zero {self.zero} is no {self.bits}-bit code")
        if isinstance(self.group, int) and (self.group < 8 or self.group % 8):
            raise InputError(f"a group is a multiple of 8 columns, not {self.group}")
        if self.rotation is not None and (self.rotation < 2 or self.rotation & (self.rotation - 1)):
            raise InputError(f"a rotation has blocks of a power of two, not {self.rotation}")
        if self.activation is None:
            settle("activation", "none" if self.grid in ("f16", "f32") else "i8")
        if self.activation == "none":
            settle("activation_group", 32)  # there is none: equal formats are equal
        if self.activation == "i8" and self.grid in ("f16", "f32"):
            raise InputError("levels off the int8 grid need float activations: activation='none'")

    def _settle_levels(self) -> None:
        assert self.levels is not None
        levels = tuple(float(v) for v in self.levels)
        object.__setattr__(self, "levels", levels)
        if len(levels) > 1 << self.bits:
            raise InputError(f"{len(levels)} levels do not fit {self.bits}-bit codes")
        if self.zero is not None or self.offset:
            raise InputError("a codebook has neither zero nor offset")
        on_grid = all(v == int(v) and -128 <= v <= 127 for v in levels)
        if self.grid is None:
            object.__setattr__(self, "grid", "i8" if on_grid else "f32")
        elif self.grid == "i8" and not on_grid:
            raise InputError("levels declared on the int8 grid must be integers from -128 to 127")

    @property
    def is_float(self) -> bool:
        """Plain floats: no codes, no scales."""
        return self.storage in FLOAT_BYTES

    @property
    def has_row_scale(self) -> bool:
        """A scale of the whole row multiplies its finished sum; not with offsets, which are in the sum."""
        return not self.is_float and not isinstance(self.group, int) and not self.offset

    @property
    def has_partial_sums(self) -> bool:
        """An activation scale holds for several weight groups: they have a sum of their own, which it multiplies."""
        inputs, weights = self.activation_group, self.group
        return self.activation == "i8" and isinstance(inputs, int) and isinstance(weights, int) and inputs > weights

    def group_size(self, columns: int) -> int:
        """How many columns share a scale in a row of `columns`."""
        return self.group if isinstance(self.group, int) else columns

    def groups(self, columns: int) -> int:
        """How many groups a row of `columns` has; the last one may be padded."""
        return -(-columns // self.group_size(columns))

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Bits that a tensor of this shape takes: codes with the padding of the last group, scales, zeros, offsets."""
        rows, columns = matrix_shape(shape)
        if self.is_float:
            return rows * columns * self.bits
        groups = self.groups(columns)
        codes = rows * groups * self.group_size(columns)
        bits = -(-codes // 5) * 8 if self.storage == "base3" else codes * self.bits
        scale_bits = 8 * FLOAT_BYTES[self.scale_dtype]
        if self.super_group is not None:
            bits += rows * groups * 8 + rows * -(-groups // self.super_group) * scale_bits
        else:
            bits += scale_bits if self.group == "tensor" else rows * groups * scale_bits
        if self.zero == "group":
            bits += rows * groups * self.zero_bits
        if self.offset:
            bits += rows * groups * scale_bits
        return bits + (32 * columns if self.permuted else 0)

    @cached_property
    def zero_bits(self) -> int:
        """Bits of a stored zero: as wide as a nibble where codes fit one, else a byte."""
        return 4 if self.bits <= 4 else 8

    def __str__(self) -> str:
        if self.is_float:
            return self.storage
        name = "base3" if self.storage == "base3" else f"int{self.bits}"
        if self.levels is not None:
            name = f"levels{len(self.levels)}.{self.grid}"
        name += f".g{self.group}" if isinstance(self.group, int) else f".{self.group}"
        if self.zero == "group":
            name += ".asymmetric"
        elif isinstance(self.zero, int) and self.storage == "packed" and self.zero != 1 << (self.bits - 1):
            name += f".zero{self.zero}"
        name += ".offset" if self.offset else ""
        name += f".super{self.super_group}" if self.super_group else ""
        name += "" if self.scale_dtype == "f16" else f".{self.scale_dtype}"
        name += ".permuted" if self.permuted else ""
        name += f".rotated{self.rotation}" if self.rotation else ""
        if self.activation == "none":
            return name + ".weight-only"
        return name if self.activation_group == 32 else f"{name}.a8-{self.activation_group}"


def parse_encoding(text: str) -> Encoding:
    """The encoding whose str() this is. InputError for other text and for codebooks: their levels are not in it."""
    first, *parts = text.split(".")
    for plain in (F32, F16, BF16):
        if text == str(plain):
            return plain
    match = re.fullmatch(r"base3|int([1-8])", first)
    if match is None or not parts:
        raise InputError(f"{text[:60]!r} does not say all of an encoding")
    fields: dict[str, Any] = {"storage": "base3"} if first == "base3" else {"bits": int(match[1])}
    group = re.fullmatch(r"g(\d{1,6})|row|tensor", parts[0])
    if group is not None:
        fields["group"] = int(group[1]) if group[1] else parts[0]
    for part in parts[1:]:
        number = re.fullmatch(r"(zero|super|rotated|a8-)(\d{1,6}|token)", part)
        if part in ("f32", "bf16"):
            fields["scale_dtype"] = part
        elif part in ("offset", "permuted"):
            fields[part] = True
        elif part == "asymmetric":
            fields["zero"] = "group"
        elif part == "weight-only":
            fields["activation"] = "none"
        elif number is not None:
            name = {"zero": "zero", "super": "super_group", "rotated": "rotation", "a8-": "activation_group"}[number[1]]
            fields[name] = number[2] if number[2] == "token" else int(number[2])
    encoding = Encoding(**fields)
    if str(encoding) != text:
        raise InputError(f"{text[:60]!r} is no encoding")
    return encoding


F32 = Encoding("f32")
F16 = Encoding("f16")
BF16 = Encoding("bf16")


def integer(
    bits: int,
    *,
    group: int | Literal["row", "tensor"] = 32,
    symmetric: bool = True,
    activation_group: int | Literal["token"] = 32,
) -> Encoding:
    """The ordinary integer encoding: f16 scales, the middle code as zero (symmetric) or a stored zero a group."""
    return Encoding(bits=bits, group=group, zero=None if symmetric else "group", activation_group=activation_group)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor's shape as [rows, columns]: all but the last dim are rows; a vector is one row."""
    rows = 1
    for dim in shape[:-1]:
        rows *= dim
    return rows, shape[-1]


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor in its encoding, unpacked: what a quantizer makes and the packer and the reference read.

    Floats: `values` in the encoding's dtype, in `shape`. Otherwise, with [rows, columns] = matrix_shape(shape):
    codes: uint8 [rows, groups, group_size]; columns beyond the row's end hold any code and are never decoded.
    scales: float32 [rows, groups], every value representable in `scale_dtype` ([1, 1] where group is "tensor").
    scale_codes: uint8 [rows, groups] where scales have two levels; `scales` is then [rows, super-groups].
    zeros: uint8 [rows, groups]; offsets: float32 [rows, groups]; order: int32 [columns] stored-position → column.
    """

    encoding: Encoding
    shape: tuple[int, ...]
    values: Tensor | None = None
    codes: Tensor | None = None
    scales: Tensor | None = None
    scale_codes: Tensor | None = None
    zeros: Tensor | None = None
    offsets: Tensor | None = None
    order: Tensor | None = None

    def group_scales(self) -> Tensor:
        """float32 [rows, groups]: the scale of every group, two levels multiplied out."""
        assert self.scales is not None and self.codes is not None
        rows, groups, _ = self.codes.shape
        if self.scale_codes is not None:
            assert self.encoding.super_group is not None
            outer = self.scales.repeat_interleave(self.encoding.super_group, dim=1)[:, :groups]
            return outer * self.scale_codes.float()
        return self.scales.expand(rows, groups)

    def decode(self) -> Tensor:
        """The float32 values, in `shape`."""
        import torch

        if self.values is not None:
            return self.values.to(torch.float32)
        assert self.codes is not None
        encoding, scales = self.encoding, self.group_scales()[..., None]
        if encoding.levels is not None:
            values = scales * torch.tensor(encoding.levels, dtype=torch.float32)[self.codes.int()]
        elif encoding.offset:
            assert self.offsets is not None
            values = scales * self.codes.float() + self.offsets[..., None]
        elif encoding.zero == "group":
            assert self.zeros is not None
            values = scales * (self.codes.float() - self.zeros.float()[..., None])
        else:
            assert isinstance(encoding.zero, int)
            values = scales * (self.codes.float() - encoding.zero)
        rows, columns = matrix_shape(self.shape)
        values = values.reshape(rows, -1)[:, :columns]
        if encoding.rotation is not None:
            values = rotate(values, encoding.rotation)  # which undoes itself
        if self.order is not None:
            restored = torch.empty_like(values)
            restored[:, self.order.long()] = values
            values = restored
        return values.reshape(self.shape)


def rotate(values: Tensor, block: int) -> Tensor:
    """float32 [n, columns], every `block` columns multiplied by the Hadamard matrix in natural order over its root.

    First by 1 / sqrt(block), then sums and differences of columns 1, 2, 4 … apart. Its own inverse, but for rounding.
    InputError where blocks do not divide the columns.
    """
    import torch

    count, columns = values.shape
    if columns % block:
        raise InputError(f"a rotation in blocks of {block} takes a multiple of it, not {columns} columns")
    result, half = values * torch.tensor(block**-0.5, dtype=torch.float32), 1
    while half < block:
        pairs = result.reshape(count, -1, 2, half)
        result = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), dim=2)
        half *= 2
    return result.reshape(count, columns)


def encode_float(values: Tensor, encoding: Encoding) -> EncodedTensor:
    """Floats in another float encoding, rounded to nearest even; InputError where f16 overflows."""
    import torch

    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[encoding.storage]
    converted = values.to(dtype)
    if dtype == torch.float16 and not torch.isfinite(converted).all():
        raise InputError("a weight is too large for f16 (beyond 65504): use bf16 or f32")
    return EncodedTensor(encoding, tuple(values.shape), values=converted)


def with_activation(encoding: Encoding, activation: Literal["none", "i8"]) -> Encoding:
    """The same stored format met by other activations."""
    return replace(encoding, activation=activation)
