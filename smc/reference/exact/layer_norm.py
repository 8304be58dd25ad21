"""The layer norm, its sums over lanes."""

from __future__ import annotations

import torch
from torch import Tensor

from smc.ir import EncodedTensor
from smc.reference.exact.registry import exact
from smc.reference.exact.rms_norm import vectors_of
from smc.reference.float32 import LANES, fma, tree_sum


@exact("layer_norm")
def layer_norm(x: Tensor, weight: EncodedTensor, bias: EncodedTensor | None, *, eps: float) -> Tensor:
    """The mean from sums of two vectors of lanes, then the variance from the squares of the differences to it."""
    normed = _normed(x, eps)
    return normed * weight.decode() if bias is None else fma(normed, weight.decode(), bias.decode())


@exact("head_layer_norm")
def head_layer_norm(x: Tensor, weight: EncodedTensor, *, head_dim: int, eps: float) -> Tensor:
    """Every head is normalized like a token, with weights of its own."""
    return _normed(x.reshape(-1, head_dim), eps).view(x.shape) * weight.decode()


def _normed(x: Tensor, eps: float) -> Tensor:
    """Rows minus their mean, divided by their standard deviation."""
    width = x.shape[1]
    sums = x.new_zeros(len(x), 2, LANES)
    for vectors in vectors_of(x):
        sums = sums + vectors
    centered = x - (tree_sum(sums[:, 0] + sums[:, 1]) / width)[:, None]
    squares = torch.zeros_like(sums)
    for vectors in vectors_of(centered):
        squares = fma(vectors, vectors, squares)
    variance = tree_sum(squares[:, 0] + squares[:, 1]) / width
    factor = 1 / (variance + eps).double().sqrt().float()
    return centered * factor[:, None]
