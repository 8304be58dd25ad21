"""Activation functions, each as one value: its meaning in torch, and the arithmetic that kernels do, bit for bit.

The exact reference and the kernels run the same `formula`, each with its own `Arithmetic`: on float32 tensors in torch,
and on vectors of a kernel's program. Every operation is rounded by itself; only `fma` rounds a product and a sum once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Arithmetic(Protocol):
    """float32 arithmetic on values that have +, -, * and / of their own."""

    def constant(self, value: float) -> Any:
        """A number, rounded to float32."""

    def exp(self, x: Any) -> Any:
        """e to the power of x, as docs/numerics.md defines it."""


@dataclass(frozen=True)
class Activation:
    """A function of one number. torch: to float32's precision; formula: exactly, in a given arithmetic."""

    name: str
    torch: Callable[[Tensor], Tensor]
    formula: Callable[[Arithmetic, Any], Any]


def _silu(x: Tensor) -> Tensor:
    """x · sigmoid(x)."""
    from torch.nn import functional

    return functional.silu(x)


def _exact_silu(m: Arithmetic, x: Any) -> Any:
    return x / (m.constant(1.0) + m.exp(m.constant(0.0) - x))


ACTIVATIONS: dict[str, Activation] = {a.name: a for a in (Activation("silu", _silu, _exact_silu),)}
"""Every activation by name; each is also an op of the ir with one input."""
