"""Mixtures of experts: the router, products with chosen matrices, and the sum of what experts give."""

from __future__ import annotations

import torch
from torch import Tensor

from smc.ir import EncodedTensor
from smc.reference.exact.linear import multiply
from smc.reference.exact.registry import exact
from smc.reference.float32 import LANES, exp, fma, tree_sum


@exact("route")
def route(logits: Tensor, *, k: int, normalized: bool) -> tuple[Tensor, Tensor]:
    """Exponentials of the differences to the largest logit, over their sum: in a vector of lanes, then as a tree."""
    chosen, experts = logits.sort(dim=-1, descending=True, stable=True)
    chosen, experts = chosen[:, :k], experts[:, :k].int()
    largest = chosen[:, :1]
    powers = exp(chosen - largest)
    summed = powers if normalized else exp(logits - largest)
    sums = logits.new_zeros(len(logits), LANES)
    for vector in torch.split(torch.nn.functional.pad(summed, (0, -summed.shape[1] % LANES)), LANES, dim=1):
        sums = sums + vector
    return powers / tree_sum(sums)[:, None], experts


@exact("dispatch")
def dispatch(x: Tensor, experts: Tensor) -> Tensor:
    """As it is, as often as a token chose experts."""
    return x[:, None].expand(-1, experts.shape[1], -1)


@exact("project")
def project(source: tuple[Tensor, ...], *, index: int) -> Tensor:
    """As it is."""
    return source[index]


@exact("grouped_linear")
def grouped_linear(x: Tensor, weights: EncodedTensor, experts: Tensor) -> Tensor:
    """Every row by the matrix of its expert, as `linear` computes it."""
    count, rows, _ = weights.shape
    result = x.new_zeros(*experts.shape, rows)
    for expert in range(count):
        token, choice = (experts == expert).nonzero(as_tuple=True)
        if len(token):
            result[token, choice] = multiply(x[token, choice], weights.matrix(expert))
    return result


@exact("combine")
def combine(x: Tensor, weights: Tensor, residual: Tensor | None) -> Tensor:
    """From 0 one fma per choice, in order; then the residual."""
    total = torch.zeros_like(x[:, 0])
    for choice in range(x.shape[1]):
        total = fma(x[:, choice], weights[:, choice, None], total)
    return total if residual is None else total + residual
