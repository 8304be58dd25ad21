"""Sums and products, each rounded once, and activations by their formulas."""

from __future__ import annotations

from torch import Tensor

from smc.ir.activations import ACTIVATIONS
from smc.reference.exact.registry import exact
from smc.reference.float32 import FLOAT32


@exact("add")
def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b."""
    return a + b


@exact("mul")
def mul(a: Tensor, b: Tensor) -> Tensor:
    """a · b."""
    return a * b


@exact("gated_activation")
def gated_activation(gate: Tensor, up: Tensor, *, activation: str) -> Tensor:
    """The activation, then the product."""
    return activate(gate, activation) * up


@exact("softcap")
def softcap(x: Tensor, *, cap: float) -> Tensor:
    """The product with 1 / cap, rounded, its tanh, times cap."""
    largest = FLOAT32.constant(cap)
    return FLOAT32.tanh(x * (FLOAT32.constant(1.0) / largest)) * largest


def activate(x: Tensor, activation: str) -> Tensor:
    """An activation's formula in float32."""
    result: Tensor = ACTIVATIONS[activation].formula(FLOAT32, x)
    return result


def _declare(activation: str) -> None:
    @exact(activation)
    def unary(x: Tensor) -> Tensor:
        return activate(x, activation)


for _activation in ACTIVATIONS:
    _declare(_activation)
