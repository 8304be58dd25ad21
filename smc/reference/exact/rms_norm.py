"""The RMS norm, its sums over lanes."""

from __future__ import annotations

import torch
from torch import Tensor

from smc.ir import EncodedTensor
from smc.reference.exact.registry import exact
from smc.reference.float32 import LANES, fma, tree_sum

COLUMNS = 32
"""Rows of activations are padded to a multiple of this with zeros."""


@exact("rms_norm")
def rms_norm(x: Tensor, weight: EncodedTensor, *, eps: float) -> Tensor:
    """Squares in two vectors of lanes, added up as a tree."""
    width = x.shape[1]
    padded = torch.nn.functional.pad(x, (0, -width % COLUMNS)).view(len(x), -1, 2, LANES)
    squares = x.new_zeros(len(x), 2, LANES)
    for vectors in padded.unbind(1):
        squares = fma(vectors, vectors, squares)
    mean = tree_sum(squares[:, 0] + squares[:, 1]) / width
    # The root in float64: torch's own in float32 may be off by a bit. Rounding it twice is harmless (53 ≥ 2 · 24 + 2).
    factor = 1 / (mean + eps).double().sqrt().float()
    return x * factor[:, None] * weight.decode()
