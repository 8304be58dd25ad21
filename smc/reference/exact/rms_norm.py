"""The RMS norm, its sums over lanes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from smc.ir import EncodedTensor
from smc.reference.exact.registry import exact
from smc.reference.float32 import LANES, fma, tree_sum

COLUMNS = 32
"""Rows of activations are padded to a multiple of this with zeros."""


@exact("rms_norm")
def rms_norm(x: Tensor, weight: EncodedTensor, residual: Tensor | None, *, eps: float) -> Tensor:
    """Squares in two vectors of lanes, added as a tree; heads are treated like tokens."""
    columns = weight.shape[0]
    heads = x.reshape(-1, columns)
    squares = x.new_zeros(len(heads), 2, LANES)
    for vectors in vectors_of(heads):
        squares = fma(vectors, vectors, squares)
    mean = tree_sum(squares[:, 0] + squares[:, 1]) / columns
    # The root in float64: torch's own in float32 may be off by a bit. Rounding it twice is harmless (53 ≥ 2 · 24 + 2).
    factor = 1 / (mean + eps).double().sqrt().float()
    result = (heads * factor[:, None] * weight.decode()).view(x.shape)
    return result if residual is None else result + residual


def vectors_of(rows: Tensor) -> Sequence[Tensor]:
    """float32 [n, columns] as pairs of vectors of lanes, [n, 2, 16] each; the last is padded with zeros."""
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % COLUMNS))
    return padded.view(len(rows), -1, 2, LANES).unbind(1)
