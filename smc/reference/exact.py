"""`ExactReference`: a module executed with the rounding of docs/numerics.md, operation by operation.

Where `Reference` computes what a module means, to float32's precision, this computes what an artifact answers, to the
bit. It is sequential only where the contract orders sums, and vectorized over all else.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from smc.errors import InputError
from smc.ir import EncodedTensor, inverse_frequencies, rotate
from smc.reference.activations import quantize_activations, quantize_heads
from smc.reference.execution import Reference
from smc.reference.float32 import LANES, exp, exp2, fma, sum_products, tree_sum
from smc.reference.operators import OPERATORS, Attributes, Operand

COLUMNS = 32
"""Rows of activations are padded to a multiple of this with zeros."""

SPLIT_TOKENS = 256
"""Attention cuts the KV cache into splits of this many tokens, each with a softmax of its own."""

BLOCK = 1 << 15
"""About how many sums a linear has in hand at once, so that they stay in the CPU's cache."""

MASKED, LOWEST = -3.0e38, -1.0e30
"""Score of a token that is not seen, and the least maximum of a split."""


class ExactReference(Reference):
    """Executes a module as its artifact does, in the same float32 operations: for tests and golden results.

    Equal bits are the aim for every encoding; `Reference` is much faster. Sequences start at cache index 0.
    """

    def values(self, tokens: Tensor) -> dict[str, Tensor]:
        """Every value of `main` by name, as `Reference.values`."""
        threads = torch.get_num_threads()
        # Millions of small operations: sharing each out among threads would cost more than it computes.
        torch.set_num_threads(1)
        try:
            return super().values(tokens)
        finally:
            torch.set_num_threads(threads)

    def _load(self, name: str) -> Operand:
        return self.module.parameters[name].load()

    def _cached(self, operands: list[Tensor], attributes: Attributes) -> list[Tensor]:
        """As `Reference._cached`, but of an int8 cache the codes, and then the scales [n, kv_heads]."""
        if self.kv_dtype != "i8":
            return super()._cached(operands, attributes)
        (keys, key_scales), (values, value_scales) = (quantize_heads(x, attributes["kv_heads"]) for x in operands)
        return [keys.flatten(1), values.flatten(1), key_scales, value_scales]

    def _operator(self, op: str) -> Callable[[Sequence[Operand], Attributes], Operand]:
        if op not in EXACT_OPERATORS:
            raise _no_kernel(f"the op {op}")
        return EXACT_OPERATORS[op]


def _no_kernel(what: str) -> InputError:
    return InputError(f"there is no kernel, and so no exact arithmetic, for {what}")


# ---- linear


def _linear(inputs: Sequence[Operand], attributes: Attributes) -> Tensor:
    x, weight, *rest = inputs
    result = multiply(x, weight)
    if attributes["bias"]:
        result = result + rest[0].decode()
    return result + rest[-1] if attributes["residual"] else result


def multiply(x: Tensor, weight: EncodedTensor) -> Tensor:
    """float32 [n, columns] times a stored matrix [rows, columns] → [n, rows], before bias and residual."""
    encoding, (rows, columns) = weight.encoding, weight.shape
    if weight.order is not None:
        x = x[:, weight.order.long()]
    if encoding.rotation is not None:
        x = rotate(x, encoding.rotation)
    product: Callable[[EncodedTensor], Tensor]
    if encoding.is_float:
        product = functools.partial(_float_product, x)
    elif encoding.activation == "none":
        product = functools.partial(_float_inputs_product, x)
    else:
        product = functools.partial(_integer_product, *quantize_activations(x, encoding.activation_group), columns)
    step = max(1, BLOCK // len(x))
    return torch.cat([product(_rows(weight, slice(row, row + step))) for row in range(0, rows, step)], dim=1)


def _rows(tensor: EncodedTensor, rows: slice | Tensor) -> EncodedTensor:
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
    """Quantized weights and float inputs: products with the codes summed column by column, then one fma a group."""
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
    token_scale, row_scale = encoding.activation_group == "token", encoding.has_row_scale
    group, input_group = encoding.group_size(columns), columns if token_scale else codes.shape[-1]
    size = min(group, input_group)
    has_parts = encoding.has_partial_sums
    pieces = -(-columns // size)
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
    """What the scales multiply, float32 [rows, groups, group]: codes minus their zero, or levels."""
    assert weight.codes is not None
    encoding = weight.encoding
    if encoding.levels is not None:
        return torch.tensor(encoding.levels, dtype=torch.float32)[weight.codes.int()]
    codes = weight.codes.float()
    if weight.zeros is not None:
        return codes - weight.zeros[..., None].float()
    return codes - encoding.zero if isinstance(encoding.zero, int) else codes


def _pieces(values: Tensor, count: int, size: int) -> Tensor:
    """[n, columns] cut into [n, count, size], the last padded with zeros, in float64: its dot products are exact."""
    padded = torch.nn.functional.pad(values, (0, count * size - values.shape[1]))
    return padded.view(len(values), count, size).double()


# ---- rows


def _embedding(inputs: Sequence[Operand], _: Attributes) -> Tensor:
    tokens, table = inputs
    if table.encoding.permuted or table.encoding.rotation:
        raise _no_kernel(f"an embedding in encoding {table.encoding}")
    rows: EncodedTensor = _rows(table, tokens.long())
    if rows.offsets is None:
        return rows.decode()
    assert rows.codes is not None and rows.scales is not None
    return fma(rows.codes.float(), rows.scales[..., None], rows.offsets[..., None]).flatten(1)[:, : table.shape[1]]


def _rms_norm(inputs: Sequence[Operand], attributes: Attributes) -> Tensor:
    x, weight = inputs
    width = x.shape[1]
    padded = torch.nn.functional.pad(x, (0, -width % COLUMNS)).view(len(x), -1, 2, LANES)
    squares = x.new_zeros(len(x), 2, LANES)
    for vectors in padded.unbind(1):
        squares = fma(vectors, vectors, squares)
    mean = tree_sum(squares[:, 0] + squares[:, 1]) / width
    # The root in float64: torch's own in float32 may be off by a bit. Rounding it twice is harmless (53 ≥ 2 · 24 + 2).
    factor = 1 / (mean + attributes["eps"]).double().sqrt().float()
    return x * factor[:, None] * weight.decode()


def _silu(x: Tensor) -> Tensor:
    return x / (1 + exp(0 - x))


def _gated_activation(inputs: Sequence[Operand], attributes: Attributes) -> Tensor:
    if attributes["activation"] != "silu":
        raise _no_kernel(f"the activation {attributes['activation']}")
    return _silu(inputs[0]) * inputs[1]


# ---- attention


def _rope(inputs: Sequence[Operand], attributes: Attributes) -> Tensor:
    x, positions = inputs
    frequencies = inverse_frequencies(attributes["head_dim"], attributes["theta"], attributes["scaling"])
    angles = (positions.float()[:, None, None] * torch.from_numpy(frequencies)).double().numpy()
    cos, sin = (torch.from_numpy(function(angles)).float() for function in (np.cos, np.sin))
    first, second = x.view(len(x), -1, attributes["head_dim"]).chunk(2, dim=-1)
    return torch.cat((fma(first, cos, -(second * sin)), fma(second, cos, first * sin)), dim=-1).view(x.shape)


def _attention(inputs: Sequence[Operand], attributes: Attributes) -> Tensor:
    """Split by split a softmax, merged in order; tokens that a query does not see weigh exactly nothing."""
    head_dim, heads, kv_heads = (attributes[name] for name in ("head_dim", "heads", "kv_heads"))
    count = len(inputs[0])
    q = inputs[0].view(count, heads, head_dim) * (attributes["scale"] * math.log2(math.e))
    # Every KV head repeated for its group of heads: all are [n, heads, head_dim].
    keys, values = (x.view(count, kv_heads, head_dim).repeat_interleave(heads // kv_heads, dim=1) for x in inputs[1:3])
    scales = [x.repeat_interleave(heads // kv_heads, dim=1).T for x in inputs[3:]]  # [heads, n] of int8 codes
    maxima = q.new_full((count, heads), LOWEST)
    sums = q.new_zeros(count, heads, LANES)
    outputs = torch.zeros_like(q)
    for begin in range(0, count, SPLIT_TOKENS):
        split, queries = slice(begin, begin + SPLIT_TOKENS), slice(begin, count)
        seen = _seen(count, split, queries, attributes["window"])
        scores = _scores(q[queries], keys[split])
        scores = scores * scales[0][:, split] if scales else scores
        maximum = torch.where(seen, scores, MASKED).amax(-1).clamp(min=LOWEST)
        weights = torch.where(seen, exp2(scores - maximum[..., None]), 0)
        split_sums, split_outputs = torch.zeros_like(sums[queries]), torch.zeros_like(outputs[queries])
        for vector in torch.split(torch.nn.functional.pad(weights, (0, -weights.shape[-1] % LANES)), LANES, dim=-1):
            split_sums += vector
        weights = weights * scales[1][:, split] if scales else weights
        for weight, value in zip(weights.unbind(-1), values[split], strict=True):
            split_outputs = fma(value, weight[..., None], split_outputs)
        new = torch.maximum(maxima[queries], maximum)
        old_factor, factor = (exp2(m - new)[..., None] for m in (maxima[queries], maximum))
        maxima[queries] = new
        sums[queries] = fma(split_sums, factor, sums[queries] * old_factor)
        outputs[queries] = fma(split_outputs, factor, outputs[queries] * old_factor)
    return (outputs * (1 / tree_sum(sums))[..., None]).view(count, -1)


def _seen(count: int, split: slice, queries: slice, window: int | None) -> Tensor:
    """bool [queries, 1, tokens of the split]: causal, and within the window."""
    places = torch.arange(count)
    distance = places[queries][:, None, None] - places[split]
    return (distance >= 0) & (distance < (window or count))


def _scores(q: Tensor, keys: Tensor) -> Tensor:
    """q [n, heads, head_dim], keys [tokens, heads, head_dim] → q·k [n, heads, tokens], channel after channel."""
    total = q.new_zeros(len(q), q.shape[1], len(keys))
    for channel in range(q.shape[2]):
        total = fma(q[..., channel, None], keys[..., channel].T, total)
    return total


EXACT_OPERATORS: dict[str, Callable[[Sequence[Operand], Attributes], Operand]] = {
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": _rope,
    "attention": _attention,
    "silu": lambda inputs, _: _silu(inputs[0]),
    "mul": OPERATORS["mul"],
    "add": OPERATORS["add"],
    "gated_activation": _gated_activation,
}
"""Like `OPERATORS`, for the ops that have kernels; parameters are encoded tensors."""
