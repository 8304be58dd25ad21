"""Sums, products and activations of every element by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.activations import ACTIVATIONS
from smc.ir.ops.registry import TypeFault, op, register
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _unary(x: TensorType) -> TensorType:
    return x


def _binary(a: TensorType, b: TensorType) -> TensorType:
    if a.shape != b.shape:
        raise TypeFault(f"an element-wise op takes two inputs of one shape, not {a}, {b}")
    return a


@op(result=_binary)
def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b, of one shape."""
    return a + b


@op(result=_binary)
def mul(a: Tensor, b: Tensor) -> Tensor:
    """a · b, of one shape."""
    return a * b


@op(result=lambda x, cap: x, increasing=True)
def softcap(x: Tensor, *, cap: float) -> Tensor:
    """cap · tanh(x / cap): values within (-cap, cap), small ones as they are."""
    return (x / cap).tanh() * cap


for _activation in ACTIVATIONS.values():
    register(_activation.name, _activation.torch, _unary, {})
