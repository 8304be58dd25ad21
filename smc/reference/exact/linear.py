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
from smc.reference.float32 import fma, sum_in_order, sum_products

BLOCK, PRODUCTS, ADDED = 1 << 15, 1 << 18, 1 << 22
"""The approximate number of sums, or products of groups, that are computed at once, so that they stay in a cache; and
of products that are added at once: a step of adding costs almost the same for few of them."""

EXACT_FLOAT32 = (1 << 24) // (127 * 255)
"""Sums of this many products of int8 inputs and codes are exact in float32, in any order."""


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
    block = BLOCK
    if encoding.is_float:
        product = functools.partial(_float_product, x)
    elif encoding.activations is None:
        product = functools.partial(_float_inputs_product, x)
    else:
        product = functools.partial(_integer_product, *quantize_activations(x, encoding.activations.group), columns)
        block = ADDED // ceil_div(columns, _piece_size(weight, columns))
    weight = rows_of(weight, slice(None))
    step = max(1, block // len(x))
    return torch.cat([product(rows_of(weight, slice(row, row + step))) for row in range(0, rows, step)], dim=1)


def rows_of(tensor: EncodedTensor, rows: slice | Tensor) -> EncodedTensor:
    """Some rows of a stored matrix, with scales and offsets [rows, groups]."""
    fields = {name: getattr(tensor, name) for name in ("values", "codes", "zeros")}
    chosen = {name: field[rows] for name, field in fields.items() if field is not None}
    if tensor.codes is not None:
        chosen["scales"] = tensor.group_scales()[rows]
    if (offsets := tensor.group_offsets()) is not None:
        chosen["offsets"] = offsets[rows]
    count = len(next(iter(chosen.values())))
    return replace(tensor, shape=(count, tensor.shape[1]), scale_codes=None, offset_codes=None, **chosen)


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
    """int8 inputs [n, groups, group] with their scales: exact dot products of parts of a row, one fma each.

    A part ends where either scale changes. An input scale for several weight groups multiplies their sum. Scales of the
    whole row or token multiply the finished sum; with offsets only those of the token do.
    """
    assert weight.scales is not None
    encoding, size = weight.encoding, _piece_size(weight, columns)
    pieces = torch.arange(ceil_div(columns, size)) * size
    dtype = torch.float32 if size <= EXACT_FLOAT32 else torch.float64
    inputs = _pieces(codes.flatten(1)[:, :columns], len(pieces), size, dtype)
    step = max(1, PRODUCTS // (len(pieces) * len(codes)))
    blocks = (rows_of(weight, slice(row, row + step)) for row in range(0, weight.shape[0], step))
    total = sum_in_order(torch.cat([_products(inputs, scales, codes.shape[-1], pieces, b) for b in blocks], dim=-1))
    if encoding.has_row_scale:
        total = total * weight.scales[:, 0]
    return total * scales if encoding.input_group == "token" else total


def _products(inputs: Tensor, scales: Tensor, input_group: int, pieces: Tensor, weight: EncodedTensor) -> Tensor:
    """float64 [steps, n, rows]: what is added up. inputs: [n, parts, size]. pieces: the first columns of parts."""
    assert weight.codes is not None and weight.scales is not None
    encoding, columns = weight.encoding, weight.shape[1]
    group = encoding.group_size(columns)
    codes = _integers(weight) if encoding.has_codebook else weight.codes
    weights = _pieces(codes.flatten(1)[:, :columns], len(pieces), inputs.shape[-1], inputs.dtype)
    # All are [parts, tokens, rows], or 1 where they are the same for all.
    amounts, dots = inputs.sum(-1).T[..., None], inputs.permute(1, 0, 2) @ weights.permute(1, 2, 0)
    if weight.zeros is not None:
        dots -= weight.zeros.T[pieces // group][:, None] * amounts
    elif not encoding.has_codebook:
        dots -= (encoding.constant_zero or 0) * amounts
    x_scales = torch.ones(1) if encoding.input_group == "token" else scales.T[pieces // input_group][..., None]
    inner = torch.ones(1) if encoding.has_partial_sums else x_scales
    factors = torch.ones(1) if encoding.has_row_scale else weight.scales.T[pieces // group][:, None]
    products = dots.double() * (factors * inner).double()
    if weight.offsets is not None:
        minima = weight.offsets.T[pieces // group][:, None].double() * (amounts.float() * inner).double()
        products = torch.stack((products, minima), dim=1).flatten(0, 1)
    if encoding.has_partial_sums:
        products = _sums_of_parts(products, len(products) // len(pieces) * (input_group // group), scales)
    return products


def _piece_size(weight: EncodedTensor, columns: int) -> int:
    """Columns of a row that share both scales."""
    inputs = weight.encoding.input_group
    return min(weight.encoding.group_size(columns), columns if inputs == "token" or inputs is None else inputs)


def _sums_of_parts(products: Tensor, count: int, scales: Tensor) -> Tensor:
    """Every `count` of products [steps, n, rows] summed from 0, then times the scale [n, groups] of their inputs."""
    padded = torch.nn.functional.pad(products, (0, 0, 0, 0, 0, -len(products) % count))
    parts = sum_in_order(padded.view(-1, count, *products.shape[1:]).transpose(0, 1).contiguous())
    return parts.double() * scales.T[..., None].double()


def _integers(weight: EncodedTensor) -> Tensor:
    """The values before scaling, float32 [rows, groups, group]: codes minus their zero, or entries of the codebook."""
    assert weight.codes is not None
    encoding = weight.encoding
    if encoding.has_codebook:
        return torch.tensor(encoding.entries, dtype=torch.float32)[weight.codes.int()]
    codes = weight.codes.float()
    if weight.zeros is not None:
        return codes - weight.zeros[..., None].float()
    return codes - (encoding.constant_zero or 0)


def _pieces(values: Tensor, count: int, size: int, dtype: torch.dtype) -> Tensor:
    """[n, columns] cut into [n, count, size], the last padded with zeros, in a dtype that has its dot products."""
    values, missing = values.to(dtype), count * size - values.shape[1]
    return (torch.nn.functional.pad(values, (0, missing)) if missing else values).view(len(values), count, size)
