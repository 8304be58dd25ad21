"""Quantization formats as data: an `Encoding` says everything a kernel needs to know about stored numbers.

It has independent parts: *codes* (how numbers are stored), *decode* (the value of a code), *scales* (the factors of
groups of columns), a *transform* of the inputs, and *activations* (how inputs are rounded).

A matrix [rows, columns] is stored as unsigned integer codes in groups along the columns, each group with a scale and
perhaps a zero or a minimum. A code is decoded in one of three ways::

    value = scale * (code - zero)           integers; `zero` is one constant or stored for every group
    value = scale * code + minimum          integers with a stored float minimum (as in Q4_1)
    value = scale * entries[code]           a codebook, on an int8 grid or in floats

Float tensors (f32, f16, bf16) also have encodings, without groups and scales.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smc.errors import InputError

FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Packed:
    """Codes of 1 to 8 bits."""

    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise InputError(f"an encoding must have 1 to 8 bits per code, not {self.bits}")

    @property
    def count(self) -> int:
        """The number of codes."""
        return 1 << self.bits

    def __str__(self) -> str:
        return f"int{self.bits}"


@dataclass(frozen=True)
class Base3:
    """Ternary codes, five in a byte."""

    bits = 2
    """The bits of an unpacked code."""

    count = 3
    """The number of codes."""

    def __str__(self) -> str:
        return "base3"


@dataclass(frozen=True)
class Floats:
    """Plain floats: no codes."""

    dtype: Literal["f32", "f16", "bf16"]

    @property
    def bits(self) -> int:
        """The bits of a value."""
        return 8 * FLOAT_BYTES[self.dtype]

    def __str__(self) -> str:
        return self.dtype


@dataclass(frozen=True)
class Affine:
    """value = scale * (code - zero). zero: a constant code, or one stored per group."""

    zero: int | Literal["stored"]


@dataclass(frozen=True)
class Minimum:
    """value = scale * code + minimum, a float stored per group.

    two_levels: minima, like the scales, are 8-bit codes times one float of the super-group.
    """

    two_levels: bool = False


@dataclass(frozen=True)
class Codebook:
    """value = scale * entries[code].

    grid: "i8" if entries are whole numbers from -128 to 127, so that products are integers, else their float dtype. By
    default "i8" if they are such numbers, and otherwise "f32".
    """

    entries: tuple[float, ...]
    grid: Literal["i8", "f16", "f32"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(float(v) for v in self.entries))
        whole = all(v == int(v) and -128 <= v <= 127 for v in self.entries)
        if self.grid is None:
            object.__setattr__(self, "grid", "i8" if whole else "f32")
        elif self.grid == "i8" and not whole:
            raise InputError("a codebook on the int8 grid must have whole numbers from -128 to 127")


@dataclass(frozen=True)
class Scales:
    """The factors of decoded codes.

    group: how many neighbouring columns share a scale; "row": the whole row; "tensor": everything.
    dtype: of the scales, and of stored minima. super_group: this many scales are stored as 8-bit codes times one scale
    of `dtype` (two-level scales). signed_codes: these codes are from -128 to 127, not from 0 to 255.
    """

    group: int | Literal["row", "tensor"] = 32
    dtype: Literal["f16", "bf16", "f32"] = "f16"
    super_group: int | None = None
    signed_codes: bool = False

    def __post_init__(self) -> None:
        if self.signed_codes and self.super_group is None:
            raise InputError("signed_codes needs a super_group: scales of one level have no codes")
        if isinstance(self.group, int) and (self.group < 8 or self.group % 8):
            raise InputError(f"a group must be a multiple of 8 columns, not {self.group}")


@dataclass(frozen=True)
class Transform:
    """A transform of inputs before they are multiplied, because the stored columns have the same transform.

    permuted: columns are stored in an order of their own (act-order); the order is kept with the tensor.
    rotation: how many columns at a time are rotated by a Hadamard matrix (`rotate`): a power of two that divides the
    columns, or None.
    """

    permuted: bool = False
    rotation: int | None = None

    def __post_init__(self) -> None:
        if self.rotation is not None and (self.rotation < 2 or self.rotation & (self.rotation - 1)):
            raise InputError(f"a rotation must be of a power of two of columns, not {self.rotation}")


@dataclass(frozen=True)
class Activations:
    """Inputs are rounded to int8, symmetrically. group: how many neighbours share a scale; "token": all of a token."""

    group: int | Literal["token"] = 32


@dataclass(frozen=True)
class Encoding:
    """How the values of a tensor are stored and decoded, and how the activations that it multiplies are rounded.

    decode: None for floats. activations: None if inputs stay floats; they are a part of the encoding because trained
    models depend on them. InputError for parts that do not fit together.
    """

    codes: Packed | Base3 | Floats
    decode: Affine | Minimum | Codebook | None
    scales: Scales = Scales()
    transform: Transform = Transform()
    activations: Activations | None = None

    def __post_init__(self) -> None:
        if isinstance(self.codes, Floats):
            if (self.decode, self.scales, self.activations) != (None, Scales("tensor"), None):
                raise InputError("an encoding of floats has no codes, scales or rounded inputs")
            return
        match self.decode:
            case None:
                raise InputError("an encoding of codes needs a decode part")
            case Affine(int(zero)) if not 0 <= zero < self.codes.count:
                raise InputError(f"zero {zero} is not a code of {self.codes}")
            case Codebook(entries) if len(entries) > self.codes.count:
                raise InputError(f"{len(entries)} entries of a codebook do not fit {self.codes}")
            case Minimum(two_levels=True) if self.scales.super_group is None:
                raise InputError("minima of two levels need scales of two levels")
            case Codebook(grid="f16" | "f32") if self.activations is not None:
                raise InputError("a codebook off the int8 grid needs float activations: activation='none'")

    @classmethod
    def of(
        cls,
        storage: Literal["packed", "base3"] = "packed",
        *,
        bits: int = 0,
        zero: int | Literal["stored"] | None = None,
        minimum: bool | Literal["two-level"] = False,
        codebook: Sequence[float] | None = None,
        grid: Literal["i8", "f16", "f32"] | None = None,
        group: int | Literal["row", "tensor"] = 32,
        scale_dtype: Literal["f16", "bf16", "f32"] = "f16",
        super_group: int | None = None,
        signed_codes: bool = False,
        permuted: bool = False,
        rotation: int | None = None,
        activation: Literal["none", "i8"] | None = None,
        activation_group: int | Literal["token"] = 32,
    ) -> Encoding:
        """An encoding of codes from its numbers. zero: the code of the value 0, by default the middle one. activation:
        by default "i8", but "none" for codebooks off the int8 grid, which need floats."""
        codes: Packed | Base3 = Base3() if storage == "base3" else Packed(bits)
        if (zero is not None) + bool(minimum) + (codebook is not None) > 1:
            raise InputError("an encoding must have only one of zero, minimum and codebook")
        decode: Affine | Minimum | Codebook = Affine(codes.count // 2 if zero is None else zero)
        if minimum:
            decode = Minimum(minimum == "two-level")
        elif codebook is not None:
            decode = Codebook(tuple(codebook), grid)
        if activation is None:
            activation = "none" if isinstance(decode, Codebook) and decode.grid != "i8" else "i8"
        activations = Activations(activation_group) if activation == "i8" else None
        scales = Scales(group, scale_dtype, super_group, signed_codes)
        return cls(codes, decode, scales, Transform(permuted, rotation), activations)

    # ---- properties for readers

    @property
    def is_float(self) -> bool:
        """Whether values are plain floats, without codes and scales."""
        return isinstance(self.codes, Floats)

    @property
    def is_base3(self) -> bool:
        """Five codes share a byte."""
        return isinstance(self.codes, Base3)

    @property
    def is_packed(self) -> bool:
        """Codes of some bits each."""
        return isinstance(self.codes, Packed)

    @property
    def bits(self) -> int:
        """The bits of an unpacked code, or of a float."""
        return self.codes.bits

    @property
    def float_dtype(self) -> Literal["f32", "f16", "bf16"]:
        """The dtype of plain floats."""
        assert isinstance(self.codes, Floats)
        return self.codes.dtype

    @property
    def stores_zeros(self) -> bool:
        """Every group has a zero of its own."""
        return self.decode == Affine("stored")

    @property
    def constant_zero(self) -> int | None:
        """The code of the value 0 if it is the same for all groups; None if codes are decoded in another way."""
        return self.decode.zero if isinstance(self.decode, Affine) and isinstance(self.decode.zero, int) else None

    @property
    def stores_minima(self) -> bool:
        """Every group has a minimum."""
        return isinstance(self.decode, Minimum)

    @property
    def has_two_level_minima(self) -> bool:
        """Minima are codes times a float of the super-group."""
        return self.decode == Minimum(two_levels=True)

    @property
    def entries(self) -> tuple[float, ...]:
        """The entries of the codebook; empty without a codebook."""
        return self.decode.entries if isinstance(self.decode, Codebook) else ()

    @property
    def has_codebook(self) -> bool:
        """Codes are indices of a codebook."""
        return isinstance(self.decode, Codebook)

    @property
    def has_integer_codebook(self) -> bool:
        """Codes are indices of a codebook on the int8 grid."""
        return isinstance(self.decode, Codebook) and self.decode.grid == "i8"

    @property
    def rounds_inputs(self) -> bool:
        """Inputs are rounded to int8."""
        return self.activations is not None

    @property
    def input_group(self) -> int | Literal["token"] | None:
        """How many neighbouring inputs share a scale; None if inputs stay floats."""
        return None if self.activations is None else self.activations.group

    @property
    def has_row_scale(self) -> bool:
        """Whether the row's scale multiplies the finished sum: not with offsets, which are in the sum."""
        return not self.is_float and not isinstance(self.scales.group, int) and not self.stores_minima

    @property
    def has_partial_sums(self) -> bool:
        """Whether an activation scale is shared by several weight groups, whose common sum it then multiplies."""
        inputs, weights = self.input_group, self.scales.group
        return isinstance(inputs, int) and isinstance(weights, int) and inputs > weights

    def group_size(self, columns: int) -> int:
        """How many columns share a scale in a row of `columns`."""
        return self.scales.group if isinstance(self.scales.group, int) else columns

    def groups(self, columns: int) -> int:
        """How many groups a row of `columns` has; the last one may be padded."""
        return ceil_div(columns, self.group_size(columns))

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Bits that a tensor of this shape takes: codes with the padding of the last group, scales, zeros, offsets."""
        rows, columns = matrix_shape(shape)
        if self.is_float:
            return rows * columns * self.bits
        groups = self.groups(columns)
        codes = rows * groups * self.group_size(columns)
        bits = ceil_div(codes, 5) * 8 if self.is_base3 else codes * self.bits
        scale_bits = 8 * FLOAT_BYTES[self.scales.dtype]
        if self.scales.super_group is not None:
            levels = 1 + self.has_two_level_minima
            bits += levels * rows * (groups * 8 + ceil_div(groups, self.scales.super_group) * scale_bits)
        else:
            bits += scale_bits if self.scales.group == "tensor" else rows * groups * scale_bits
        if self.stores_zeros:
            bits += rows * groups * self.zero_bits
        if self.stores_minima and not self.has_two_level_minima:
            bits += rows * groups * scale_bits
        return bits + (32 * columns * stack_shape(shape)[0] if self.transform.permuted else 0)

    @property
    def zero_bits(self) -> int:
        """Bits of a stored zero: 4 if codes have at most 4 bits, else 8."""
        return 4 if self.bits <= 4 else 8

    def __str__(self) -> str:
        if isinstance(self.codes, Floats):
            return str(self.codes)
        scales, name = self.scales, str(self.codes)
        if isinstance(self.decode, Codebook):
            name = f"levels{len(self.decode.entries)}.{self.decode.grid}"
        name += f".g{scales.group}" if isinstance(scales.group, int) else f".{scales.group}"
        if self.stores_zeros:
            name += ".asymmetric"
        elif self.constant_zero is not None and self.constant_zero != self.codes.count // 2:
            name += f".zero{self.constant_zero}"
        name += (".offset2" if self.has_two_level_minima else ".offset") if self.stores_minima else ""
        name += f".{'signed' if scales.signed_codes else 'super'}{scales.super_group}" if scales.super_group else ""
        name += "" if scales.dtype == "f16" else f".{scales.dtype}"
        name += ".permuted" if self.transform.permuted else ""
        name += f".rotated{self.transform.rotation}" if self.transform.rotation else ""
        if self.input_group is None:
            return name + ".weight-only"
        return name if self.input_group == 32 else f"{name}.a8-{self.input_group}"


_NUMBERS = {
    "zero": "zero",
    "super": "super_group",
    "signed": "super_group",
    "rotated": "rotation",
    "a8-": "activation_group",
}


def parse_encoding(text: str) -> Encoding:
    """The encoding whose str() this is. InputError for other text and for codebooks: their entries are not in it."""
    first, *parts = text.split(".")
    for plain in (F32, F16, BF16):
        if text == str(plain):
            return plain
    match = re.fullmatch(r"base3|int([1-8])", first)
    if match is None or not parts:
        raise InputError(f"{text[:60]!r} is only a part of an encoding")
    fields: dict[str, Any] = {"storage": "base3"} if first == "base3" else {"bits": int(match[1])}
    group = re.fullmatch(r"g(\d{1,6})|row|tensor", parts[0])
    if group is not None:
        fields["group"] = int(group[1]) if group[1] else parts[0]
    for part in parts[1:]:
        number = re.fullmatch(r"(zero|super|signed|rotated|a8-)(\d{1,6}|token)", part)
        if part in ("f32", "bf16"):
            fields["scale_dtype"] = part
        elif part in ("offset", "permuted"):
            fields["minimum" if part == "offset" else part] = True
        elif part == "offset2":
            fields["minimum"] = "two-level"
        elif part == "asymmetric":
            fields["zero"] = "stored"
        elif part == "weight-only":
            fields["activation"] = "none"
        elif number is not None:
            name = _NUMBERS[number[1]]
            fields[name] = number[2] if number[2] == "token" else int(number[2])
            if number[1] == "signed":
                fields["signed_codes"] = True
    encoding = Encoding.of(**fields)
    if str(encoding) != text:
        raise InputError(f"{text[:60]!r} is not an encoding")
    return encoding


F32, F16, BF16 = (Encoding(Floats(dtype), None, Scales("tensor")) for dtype in ("f32", "f16", "bf16"))


def integer(
    bits: int,
    *,
    group: int | Literal["row", "tensor"] = 32,
    symmetric: bool = True,
    activation_group: int | Literal["token"] = 32,
) -> Encoding:
    """The ordinary integer encoding: f16 scales, the middle code as zero (symmetric) or a stored zero per group."""
    return Encoding.of(bits=bits, group=group, zero=None if symmetric else "stored", activation_group=activation_group)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor's shape as [rows, columns]: all but the last dim are rows; a vector is one row."""
    rows = 1
    for dim in shape[:-1]:
        rows *= dim
    return rows, shape[-1]


def stack_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A matrix's shape, or that of a stack of matrices, as [count, rows, columns]."""
    count, columns = matrix_shape((*shape[:-2], 1))[0], shape[-1]
    return count, shape[-2], columns
