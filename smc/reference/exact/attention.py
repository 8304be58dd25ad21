"""Attention: a softmax for each split of the KV cache, merged in order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from smc.reference.exact.registry import exact
from smc.reference.float32 import LANES, exp2, fma, tanh, tree_sum

SPLIT_TOKENS = 256
"""Attention cuts the KV cache into splits of this many tokens, each with a softmax of its own."""

MASKED, LOWEST = -3.0e38, -1.0e30
"""The score of a token that is not attended to, and the least maximum of a split."""


@dataclass(frozen=True)
class HeadCodes:
    """K or V in an int8 cache: whole numbers as float32 [n, kv_heads · head_dim], scales float32 [n, kv_heads]."""

    codes: Tensor
    scales: Tensor


@exact("attention")
def attention(
    q: Tensor,
    k: Tensor | HeadCodes,
    v: Tensor | HeadCodes,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """A softmax per split, merged in order; tokens that a query does not attend to have weight 0 exactly."""
    count = len(q)
    q = q.view(count, heads, head_dim) * (scale * math.log2(math.e) if softcap is None else scale / softcap)
    # Every KV head repeated for its group of heads: all are [n, heads, head_dim].
    group = heads // kv_heads
    keys, values = (_stored(x).view(count, kv_heads, head_dim).repeat_interleave(group, dim=1) for x in (k, v))
    # [heads, n] of int8 codes
    scales = [x.scales.repeat_interleave(group, dim=1).T for x in (k, v) if isinstance(x, HeadCodes)]
    maxima = q.new_full((count, heads), LOWEST)
    sums = q.new_zeros(count, heads, LANES)
    outputs = torch.zeros_like(q)
    for begin in range(0, count, SPLIT_TOKENS):
        split, queries = slice(begin, begin + SPLIT_TOKENS), slice(begin, count)
        seen = _seen(count, split, queries, window)
        scores = _scores(q[queries], keys[split])
        scores = scores * scales[0][:, split] if scales else scores
        scores = scores if softcap is None else tanh(scores) * (softcap * math.log2(math.e))
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


def _stored(x: Tensor | HeadCodes) -> Tensor:
    return x.codes if isinstance(x, HeadCodes) else x



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
