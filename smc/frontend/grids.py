"""Grid detection: matrices of floats that hold few different values per group, as unpacked ternary models (TriLM) and
quantization-aware training leave them. They are packed as codes and scales, without loss."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from smc.frontend.checkpoint import Coded, StoredTensor
from smc.frontend.prequantized.registry import Tensors
from smc.ir import EncodedTensor, Encoding

if TYPE_CHECKING:
    from torch import Tensor

GROUPS: tuple[int | Literal["row"], ...] = ("row", 256, 128, 64, 32)
"""Columns that may share a scale, the most first."""

LEAST_WEIGHTS, LEAST_COLUMNS = 1024, 32
"""Smaller matrices may lie on a grid by chance."""

PROBED_ROWS = 64
TERNARY, FOURBIT = 1, 8
"""The largest magnitude of an integer on a grid."""


def on_grids(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors, with codes for those on a grid, and a line about them.

    The first matrix of a layer is read; only if it lies on a grid all others are.
    """
    matrices = [t for t in tensors.values() if len(t.shape) == 2 and _is_large(t.shape) and t.coded is None]
    probe = next((t for t in matrices if ".layers." in t.name or ".h." in t.name), None)
    if probe is None or grid_of(probe.values()[:PROBED_ROWS]) is None:
        return tensors, ()
    found = {t.name: encoding for t in matrices if (encoding := grid_of(t.values())) is not None}
    if not found:
        return tensors, ()
    coded = {name: _coded(tensors[name], encoding) for name, encoding in found.items()}
    names = ", ".join(sorted({str(encoding) for encoding in found.values()}))
    return {**tensors, **coded}, (f"grid: {len(found)} matrices of floats packed without loss ({names})",)


def _is_large(shape: tuple[int, ...]) -> bool:
    return shape[0] * shape[1] >= LEAST_WEIGHTS and shape[1] >= LEAST_COLUMNS


def _coded(stored: StoredTensor, encoding: Encoding) -> StoredTensor:
    return replace(stored, coded=Coded(encoding, partial(_load, stored, encoding)))


def _load(stored: StoredTensor, encoding: Encoding) -> EncodedTensor:
    return encode(stored.values(), encoding)


def grid_of(values: Tensor) -> Encoding | None:
    """The encoding that represents a matrix [rows, columns] exactly with the fewest bits: ternary, else 4 bits; or
    None."""
    for largest in (TERNARY, FOURBIT):
        for group in GROUPS:
            if isinstance(group, int) and values.shape[1] % group:
                continue
            found = _scales(values, group, largest)
            if found is not None and found.any():
                storage: Literal["base3", "packed"] = "base3" if largest == TERNARY else "packed"
                return Encoding.of(storage, bits=4, group=group, scale_dtype=_narrowest(found))
    return None


def encode(values: Tensor, encoding: Encoding) -> EncodedTensor:
    """A matrix on the grid of this encoding, as codes."""
    import torch

    assert encoding.constant_zero is not None and encoding.scales.group != "tensor"
    zero = encoding.constant_zero
    scales = _scales(values, encoding.scales.group, zero)
    assert scales is not None
    groups = _grouped(values, encoding.scales.group)
    inverse = torch.where(scales == 0, 0.0, 1 / scales.double())
    codes = (groups.double() * inverse[..., None]).round().add(zero).to(torch.uint8)
    return EncodedTensor(encoding, tuple(values.shape), codes=codes, scales=scales)


def _grouped(values: Tensor, group: int | Literal["row"]) -> Tensor:
    """float32 [rows, groups, group]."""
    return values.float().reshape(len(values), -1, values.shape[1] if group == "row" else group)


def _scales(values: Tensor, group: int | Literal["row"], largest: int) -> Tensor | None:
    """float32 [rows, groups]: scales whose multiples by whole numbers from -largest to largest (8: to 7) the values are
    exactly; None if there are none. Of several the largest; 0 for groups of zeros."""
    import torch

    groups = _grouped(values, group)
    amax, (low, high) = groups.abs().amax(-1), (groups.amin(-1), groups.amax(-1))
    result, missing = torch.zeros_like(amax), amax > 0
    for steps in range(1, largest + 1):
        # There is one code more below zero than above: 8 steps need the sign that puts them below.
        sign = torch.where(high > -low, -1.0, 1.0) if steps == FOURBIT else torch.ones_like(amax)
        scale = _short(amax / steps) * sign
        whole = torch.where(scale[..., None] == 0, 0, groups / scale[..., None]).round()
        top = 7 if steps == FOURBIT else largest
        fits = missing & ((whole * scale[..., None] == groups) & (whole >= -largest) & (whole <= top)).all(-1)
        result[fits], missing = scale[fits], missing & ~fits
        if not missing.any():
            return result
    return None


def _short(scales: Tensor) -> Tensor:
    """Scales rounded to f16 where that changes them by an ulp of float32 or two: a division left these."""
    short = scales.half().float()
    return short.where((short - scales).abs() <= scales * 2**-22, scales)


def _narrowest(scales: Tensor) -> Literal["f16", "bf16", "f32"]:
    if scales.half().float().equal(scales):
        return "f16"
    return "bf16" if scales.bfloat16().float().equal(scales) else "f32"
