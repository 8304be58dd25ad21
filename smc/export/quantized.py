"""Quantized matrices in formats that other programs read: compressed-tensors, BitNet's packed ternary, and QLlama's.

The layouts are those that `smc.frontend.prequantized` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from smc.export.tensors import Place, Stored
from smc.ir import EncodedTensor, Encoding, Parameter, ceil_div

if TYPE_CHECKING:
    from torch import Tensor

TERNARY_ROWS = 4
"""Rows whose codes share a byte."""

ENDS = ("embed", "lm_head")
"""Parts of the names of embeddings and heads, which these formats keep as floats."""


def _can_be_coded(place: Place) -> Parameter | None:
    """Whether a tensor is one whole matrix of codes, and not an embedding or a head."""
    parameter = place.whole
    if parameter is None or parameter.encoding.is_float or any(end in place.name for end in ENDS):
        return None
    return parameter if place.name.endswith(".weight") else None


def packed_integers(places: Sequence[Place]) -> list[Place]:
    """The matrices that compressed-tensors can store: integers in whole groups, with a zero per group or in the
    middle."""
    found = []
    for place in places:
        parameter = _can_be_coded(place)
        if parameter is None:
            continue
        encoding, (_, columns) = parameter.encoding, parameter.shape
        whole = encoding.scales.group == "row" or (
            isinstance(encoding.scales.group, int) and columns % encoding.scales.group == 0
        )
        affine = encoding.stores_zeros or encoding.constant_zero == 1 << (encoding.bits - 1)
        plain = encoding.is_packed and encoding.scales.super_group is None and not encoding.transform.permuted
        if whole and affine and plain and encoding.transform.rotation is None:
            found.append(place)
    return found


def packed_ternary(places: Sequence[Place]) -> list[Place]:
    """The matrices that BitNet can store: -1, 0 and 1 with one scale."""
    found = []
    for place in places:
        parameter = _can_be_coded(place)
        if parameter is not None and is_ternary(parameter.encoding) and parameter.shape[0] % TERNARY_ROWS == 0:
            found.append(place)
    return found


def latent_ternary(places: Sequence[Place]) -> list[Place]:
    """The matrices that QLlama can say: -1, 0 and 1 with a scale per row, inputs that stay floats."""
    coded = ((place, _can_be_coded(place)) for place in places)
    return [place for place, parameter in coded if parameter is not None and is_row_ternary(parameter.encoding)]


def is_ternary(encoding: Encoding) -> bool:
    """-1, 0 and 1 with one scale per matrix, inputs rounded per token."""
    return _has_ternary_codes(encoding) and encoding.scales.group == "tensor" and encoding.input_group == "token"


def is_row_ternary(encoding: Encoding) -> bool:
    """-1, 0 and 1 with a scale per row, inputs not rounded."""
    return _has_ternary_codes(encoding) and encoding.scales.group == "row" and not encoding.rounds_inputs


def _has_ternary_codes(encoding: Encoding) -> bool:
    return encoding.constant_zero == 1 and (encoding.is_base3 or encoding.bits == 2)


# ---- compressed-tensors


def is_packed(encoding: Encoding) -> bool:
    """Whether codes share words (pack-quantized) or have a byte each (int-quantized).

    transformers 5.23 can't load packed zeros: it expects them in the shape of the scales.
    """
    return encoding.bits in (4, 8) and not encoding.stores_zeros


def integer_tensors(place: Place) -> list[Stored]:
    """The tensors that stand for a matrix."""
    parameter = place.whole
    assert parameter is not None
    encoding, (rows, columns) = parameter.encoding, parameter.shape
    module, groups = place.name.removesuffix(".weight"), encoding.groups(columns)
    if not is_packed(encoding):
        return _plain_tensors(place.name, parameter)
    words = ceil_div(columns * encoding.bits, 32)
    dtype = {"f16": "F16", "bf16": "BF16", "f32": "F32"}[encoding.scales.dtype]
    return [
        Stored(f"{module}.weight_packed", (rows, words), "I32", partial(_packed, parameter)),
        Stored(f"{module}.weight_scale", (rows, groups), dtype, partial(_scales, parameter)),
        Stored(f"{module}.weight_shape", (2,), "I64", partial(_shape, parameter)),
    ]


def _plain_tensors(name: str, parameter: Parameter) -> list[Stored]:
    encoding, (rows, columns) = parameter.encoding, parameter.shape
    dtype, groups = {"f16": "F16", "bf16": "BF16", "f32": "F32"}[encoding.scales.dtype], encoding.groups(columns)
    found = [
        Stored(name, (rows, columns), "I8", partial(_signed, parameter)),
        Stored(f"{name}_scale", (rows, groups), dtype, partial(_scales, parameter)),
    ]
    if encoding.stores_zeros:
        found.append(Stored(f"{name}_zero_point", (rows, groups), "I8", partial(_zeros, parameter)))
    return found


def _signed(parameter: Parameter) -> Tensor:
    import torch

    middle = 1 << (parameter.encoding.bits - 1)
    return (_codes(parameter.load()).to(torch.int16) - middle).to(torch.int8).contiguous()


def _codes(data: EncodedTensor) -> Tensor:
    assert data.codes is not None
    return data.codes.reshape(data.shape[0], -1)[:, : data.shape[1]]


def _packed(parameter: Parameter) -> Tensor:
    return pack(_codes(parameter.load()), parameter.encoding.bits)


def _zeros(parameter: Parameter) -> Tensor:
    import torch

    zeros = parameter.load().zeros
    assert zeros is not None
    return (zeros.to(torch.int16) - (1 << (parameter.encoding.bits - 1))).to(torch.int8)


def _scales(parameter: Parameter) -> Tensor:
    import torch

    scales = parameter.load().group_scales()
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[parameter.encoding.scales.dtype]
    return scales.to(dtype).contiguous()


def _shape(parameter: Parameter) -> Tensor:
    import torch

    return torch.tensor(parameter.shape, dtype=torch.int64)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [n, columns] → int32 [n, words], codes of 4 or 8 bits one after another from the lowest bits on."""
    import torch

    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] * bits % 32 // bits))
    octets = padded if bits == 8 else padded[:, 0::2] | padded[:, 1::2] << 4
    return octets.contiguous().view(torch.int32)


def integer_config(coded: Sequence[Place], others: Sequence[Place]) -> dict[str, Any]:
    """quantization_config: one group per kind of storage, which names its modules."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for place in coded:
        parameter = place.whole
        assert parameter is not None
        encoding = parameter.encoding
        size = encoding.scales.group if isinstance(encoding.scales.group, int) else None
        key = (encoding.bits, size, not encoding.stores_zeros)
        groups.setdefault(key, []).append(place.name.removesuffix(".weight"))
    packs = {symmetric and bits in (4, 8) for bits, _, symmetric in groups}
    formats = {True: "pack-quantized", False: "int-quantized"}
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision" if len(packs) > 1 else formats[packs.pop()],
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": [p.name.removesuffix(".weight") for p in others if len(p.dense("F32").shape) == 2],
        "config_groups": {
            f"group_{index}": {
                "targets": modules,
                "format": formats[symmetric and bits in (4, 8)],
                "input_activations": None,
                "output_activations": None,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": symmetric,
                    "strategy": "channel" if size is None else "group",
                    **({} if size is None else {"group_size": size}),
                },
            }
            for index, ((bits, size, symmetric), modules) in enumerate(groups.items())
        },
    }


# ---- BitNet


def ternary_tensors(place: Place) -> list[Stored]:
    """The tensors that stand for a matrix: four rows in a byte, and the scale that multiplies."""
    parameter = place.whole
    assert parameter is not None
    rows, columns = parameter.shape
    module = place.name.removesuffix(".weight")
    return [
        Stored(place.name, (rows // TERNARY_ROWS, columns), "U8", partial(_ternary, parameter)),
        Stored(f"{module}.weight_scale", (1,), "F32", partial(_scale, parameter)),
    ]


def _ternary(parameter: Parameter) -> Tensor:
    import torch

    parts = _codes(parameter.load()).chunk(TERNARY_ROWS)
    packed = torch.zeros_like(parts[0])
    for index, part in enumerate(parts):
        packed |= part << 2 * index
    return packed


def _scale(parameter: Parameter) -> Tensor:
    scales = parameter.load().scales
    assert scales is not None
    return scales.flatten()[:1].float().clone()


def ternary_config(others: Sequence[Place]) -> dict[str, Any]:
    """quantization_config; `others` are the matrices that stay floats."""
    kept = sorted({p.name.removesuffix(".weight") for p in others if len(p.dense("F32").shape) == 2})
    return {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
        "use_rms_norm": False,
        "modules_to_not_convert": kept,
    }


# ---- QLlama

QLLAMA = "QLlamaForCausalLM"
"""The class of a Llama whose matrices have row scales beside them; it has no quantization_config."""


def latent_tensors(place: Place) -> list[Stored]:
    """The tensors that stand for a matrix: floats that round to its codes (here these themselves), and its scales."""
    parameter = place.whole
    assert parameter is not None
    module, dtype = place.name.removesuffix(".weight"), parameter.encoding.scales.dtype.upper()
    return [
        Stored(place.name, (parameter.shape[0], parameter.shape[1]), "F16", partial(_latent, parameter)),
        Stored(f"{module}.scales", (parameter.shape[0],), dtype, partial(_row_scales, parameter)),
    ]


def _latent(parameter: Parameter) -> Tensor:
    import torch

    return (_codes(parameter.load()).to(torch.float16) - 1).contiguous()


def _row_scales(parameter: Parameter) -> Tensor:
    return _scales(parameter).reshape(-1)
