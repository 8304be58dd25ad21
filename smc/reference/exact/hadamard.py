"""Hadamard transforms of activations: sums and differences in a fixed order."""

from __future__ import annotations

from torch import Tensor

from smc.ir import rotate
from smc.reference.exact.registry import exact


@exact("hadamard")
def hadamard(x: Tensor, *, block: int) -> Tensor:
    """First times 1 / sqrt(block), then sums and differences of columns 1, 2, 4 … apart, each rounded."""
    return rotate(x, block)
