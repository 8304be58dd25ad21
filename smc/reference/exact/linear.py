"""Matrix products as docs/numerics.md orders them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from smc.ir import EncodedTensor, ceil_div, rotate
from smc.reference.activations import quantize_activations
from smc.reference.exact.registry import exact
from smc.reference.float32 import fma, sum_products

BLOCK = 1 << 15
"""About how many sums a linear has in hand at once, so that they stay in the CPU's cache."""


@exact("linear")
def linear(x: Tensor, weight: EncodedTensor, bias: EncodedTensor | None, residual: Tensor | None) -> Tensor:
    """The finished sums, then bias, then residual."""
    result = multiply(x, weight)
    result = result if bias is None else result + bias.decode()
    return result if residual is None else result + residual


def multiply(x: Tensor, weight: EncodedTensor) -> Tensor:
    """float32 [n, columns] times a stored matrix [rows, columns] → [n, rows], before bias and residual."""
    encoding, (rows, columns) = weight.encoding, weight.shape
    if weight.order is not None:
        x = x[:, weight.order.long()]
    if encoding.transform.rotation is not None:
        x = rotate(x, encoding.transform.rotation)
    product: Callable[[EncodedTensor], Tensor]
    if encoding.is_float:
        product = functools.partial(_float_product, x)
    elif encoding.activations is None:
        product = functools.partial(_float_inputs_product, x)
    else:
        product = functools.partial(_integer_product, *quantize_activations(x, encoding.activations.group), columns)
    step = max(1, BLOCK // len(x))
    return torch.cat([product(rows_of(weight, slice(row, row + step))) for row in range(0, rows, step)], dim=1)


def rows_of(tensor: EncodedTensor, rows: slice | Tensor) -> EncodedTensor:
    """Some rows of a stored matrix, with scales [rows, groups]."""
    fields = {name: getattr(tensor, name) for name in ("values", "codes", "zeros", "offsets")}
    chosen = {name: field[rows] for name, field in fields.items() if field is not None}
    if tensor.codes is not None:
        chosen["scales"] = tensor.group_scales()[rows]
    count = len(next(iter(chosen.values())))
    return replace(tensor, shape=(count, tensor.shape[1]), scale_codes=None, **chosen)


def _float_product(x: Tensor, weight: EncodedTensor) -> Tensor:
    """Float weights: one sum along the row."""
    assert weight.values is not None
    return sum_products(x, weight.values.float())


def _float_inputs_product(x: Tensor, weight: EncodedTensor) -> Tensor:
    """Quantized weights and float inputs: products with the codes summed column by column, then one fma per group."""
    assert weight.scales is not None
    encoding = weight.encoding
    codes, row_scale = _integers(weight), encoding.has_row_scale
    size = codes.shape[-1]
    total = x.new_zeros(len(x), len(codes), dtype=torch.float32)
    for group in range(codes.shape[1]):
        inputs = x[:, group * size : (group + 1) * size]
        part = sum_products(inputs, codes[:, group, : inputs.shape[1]])
        if row_scale:
            return part * weight.scales[:, 0]
        total = fma(part, weight.scales[:, group], total)
        if weight.offsets is not None:
            amount = sum_products(inputs, torch.ones_like(inputs[:1]))
            total = fma(amount, weight.offsets[:, group], total)
    return total


def _integer_product(codes: Tensor, scales: Tensor, columns: int, weight: EncodedTensor) -> Tensor:
    """int8 inputs [n, groups, group] with their scales: exact dots of pieces of a row, one fma each.

    A piece ends where either scale changes. An input scale that holds for several weight groups multiplies their sum.
    Scales of the whole row or token multiply the finished sum; with offsets only those of the token do.
    """
    assert weight.codes is not None and weight.scales is not None
    encoding = weight.encoding
    token_scale, row_scale = encoding.input_group == "token", encoding.has_row_scale
    group, input_group = encoding.group_size(columns), columns if token_scale else codes.shape[-1]
    size = min(group, input_group)
    has_parts = encoding.has_partial_sums
    pieces = ceil_div(columns, size)
    inputs = _pieces(codes.flatten(1)[:, :columns], pieces, size)
    weights = _pieces(_integers(weight).flatten(1)[:, :columns], pieces, size)
    total = part = inputs.new_zeros(len(codes), len(weights), dtype=torch.float32)
    for piece in range(pieces):
        dots = (inputs[:, piece] @ weights[:, piece].T).float()
        place, input_place = piece * size // group, piece * size // input_group
        x_scale = torch.ones(1) if token_scale or has_parts else scales[:, input_place, None]
        factor = torch.ones(1) if row_scale else weight.scales[:, place]
        part = fma(dots, factor * x_scale, part)
        if weight.offsets is not None:
            amount = inputs[:, piece].sum(-1, keepdim=True).float()
            part = fma(weight.offsets[:, place], amount * x_scale, part)
        if has_parts and (piece + 1 == pieces or (piece + 1) * size % input_group == 0):
            total, part = fma(part, scales[:, input_place, None], total), torch.zeros_like(part)
    total = total if has_parts else part
    if row_scale:
        total = total * weight.scales[:, 0]
    return total * scales if token_scale else total


def _integers(weight: EncodedTensor) -> Tensor:
    """What the scales multiply, float32 [rows, groups, group]: codes minus their zero, or entries of the codebook."""
    assert weight.codes is not None
    encoding = weight.encoding
    if encoding.has_codebook:
        return torch.tensor(encoding.entries, dtype=torch.float32)[weight.codes.int()]
    codes = weight.codes.float()
    if weight.zeros is not None:
        return codes - weight.zeros[..., None].float()
    return codes - (encoding.constant_zero or 0)


def _pieces(values: Tensor, count: int, size: int) -> Tensor:
    """[n, columns] cut into [n, count, size], the last padded with zeros, in float64: its dot products are exact."""
    padded = torch.nn.functional.pad(values, (0, count * size - values.shape[1]))
    return padded.view(len(values), count, size).double()
