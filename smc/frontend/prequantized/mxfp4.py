"""mxfp4 (Open Compute Project, "OCP Microscaling Formats Specification 1.0", 2023): e2m1 floats, one scale per 32
columns.

A byte has two neighbouring columns, the first in its lower half; a scale is a byte e that stands for 2**(e - 127).
transformers has `NAME_blocks` [rows, groups, 16] and `NAME_scales` [rows, groups], of experts one dim more in front;
compressed-tensors `weight_packed` [rows, columns / 2] and `weight_scale` [rows, groups].
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.frontend.checkpoint import Coded, IntegerTensor, StoredTensor
from smc.frontend.config import Config
from smc.frontend.prequantized.registry import Tensors, method
from smc.frontend.prequantized.tensors import Parts
from smc.ir import F32, EncodedTensor, Encoding

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32
"""Columns that share a scale."""

BYTES = ("U8", "F8_E8M0")
"""Dtypes of scales in safetensors files."""

_HALVES = (0, 1, 2, 3, 4, 6, 8, 12)
ENTRIES = (*_HALVES, *(-value for value in _HALVES))
"""The values of codes, doubled to be whole numbers; scales are halved."""

ENCODING = Encoding.of(bits=4, codebook=ENTRIES, group=GROUP, scale_dtype="bf16")
"""Powers of two are bf16 numbers, exactly."""


@method("mxfp4")
def mxfp4(config: Config, tensors: Tensors) -> Tensors:
    """Matrices keep their codes; stacks of experts are dequantized."""
    rest = dict(tensors)
    for name in [name for name in tensors if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        blocks, scales = rest.pop(name), rest.pop(f"{stem}_scales", None)
        if scales is None:
            raise InputError(f"{blocks.origin}: {stem} lacks {stem}_scales, so its quantization cannot be undone")
        if len(blocks.shape) not in (3, 4) or blocks.shape[-1] * 2 != GROUP or scales.shape != blocks.shape[:-1]:
            raise InputError(
                f"{blocks.origin}: {name} has shape {list(blocks.shape)} and its scales {list(scales.shape)}, expected "
                f"[…, rows, groups, {GROUP // 2}] and [… rows, groups]"
            )
        is_matrix = len(blocks.shape) == 3
        result = f"{stem}.weight" if is_matrix and not stem.endswith(".weight") else stem
        shape = (*blocks.shape[:-2], blocks.shape[-2] * GROUP)
        rest[result] = _stored(result, shape, _bytes(blocks, "U8"), _bytes(scales, *BYTES), is_matrix)
    return rest


def packed(tensors: Tensors) -> Tensors:
    """The same in the layout of compressed-tensors."""
    rest = dict(tensors)
    for parts in Parts.all_of(rest, "weight_packed"):
        codes, scales = parts.take_integers("weight_packed", "U8"), parts.take_integers("weight_scale", *BYTES)
        if len(codes.shape) != 2 or codes.shape[1] * 2 % GROUP:
            raise InputError(f"{parts.origin}: {codes.name} has shape {list(codes.shape)}, no groups of {GROUP}")
        rows, columns = codes.shape[0], codes.shape[1] * 2
        parts.check(scales, (rows, columns // GROUP))
        name = f"{parts.module}.weight"
        rest[name] = _stored(name, (rows, columns), codes, scales, True)
    return rest


def _bytes(tensor: StoredTensor, *dtypes: str) -> IntegerTensor:
    if not isinstance(tensor, IntegerTensor) or tensor.dtype not in dtypes:
        raise InputError(f"{tensor.origin}: {tensor.name} is not stored as {' or '.join(dtypes)}")
    return tensor


def _stored(
    name: str, shape: tuple[int, ...], codes: IntegerTensor, scales: IntegerTensor, keeps_codes: bool
) -> StoredTensor:
    load = partial(_load, shape, codes, scales)
    coded = Coded(ENCODING, load) if keeps_codes else None
    return StoredTensor(name, shape, F32, partial(_values, load), codes.origin, coded)


def _values(load: partial[EncodedTensor]) -> Tensor:
    return load().decode()


def _load(shape: tuple[int, ...], codes: IntegerTensor, scales: IntegerTensor) -> EncodedTensor:
    import torch

    octets, exponents = codes.values().reshape(-1, shape[-1] // 2), scales.values()
    both = torch.stack((octets & 15, octets >> 4), dim=-1)
    # 255 stands for no number.
    powers = torch.exp2(exponents.double() - 128).masked_fill(exponents == 255, torch.nan).float()
    groups = shape[-1] // GROUP
    return EncodedTensor(
        ENCODING, shape, codes=both.reshape(-1, groups, GROUP), scales=powers.reshape(len(octets), groups)
    )
