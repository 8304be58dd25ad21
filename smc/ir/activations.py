"""Activation functions as values: the meaning in torch, and the arithmetic of kernels, bit for bit.

The exact reference and the kernels use the same `formula`, each with its own `Arithmetic`: float32 tensors in torch,
and vectors in a kernel. Every operation is rounded by itself; only `fma` rounds a product and a sum once. Add products
only with `fma`, because compilers may fuse them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Arithmetic(Protocol):
    """float32 arithmetic on values that have +, -, * and /."""

    def constant(self, value: float) -> Any:
        """A number, rounded to float32."""

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once."""

    def maximum(self, a: Any, b: Any) -> Any:
        """The larger one."""

    def absolute(self, x: Any) -> Any:
        """|x|."""

    def exp(self, x: Any) -> Any:
        """e to the power of x, as docs/numerics.md defines it."""

    def tanh(self, x: Any) -> Any:
        """The hyperbolic tangent, as docs/numerics.md defines it."""


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


def _gelu(x: Tensor) -> Tensor:
    """x · Φ(x), Φ the normal distribution (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016)."""
    from torch.nn import functional

    return functional.gelu(x)


TAIL_STEP, TAIL = 0.3, (
    0.11962920427322388,
    0.12075542658567429,
    0.09990464150905609,
    0.12858976423740387,
    -0.05373457446694374,
    0.20640622079372406,
    -0.15723209083080292,
    0.035681337118148804,
)
"""1 - Φ(a) = exp(-a²/2) · t · (TAIL[0] + TAIL[1]·t + …) with t = 1 / (1 + TAIL_STEP · a), for a ≥ 0.

The polynomial has degree 7 and the least relative error in [0, 14], 3e-7 in float32; Lawson's algorithm (iterated
weighted least squares) found it."""


def _exact_gelu(m: Arithmetic, x: Any) -> Any:
    a, one = m.absolute(x), m.constant(1.0)
    t = one / m.fma(m.constant(TAIL_STEP), a, one)
    polynomial = m.constant(TAIL[-1])
    for coefficient in TAIL[-2::-1]:
        polynomial = m.fma(polynomial, t, m.constant(coefficient))
    tail = m.exp(a * a * m.constant(-0.5)) * t * polynomial
    return m.fma(a, m.constant(0.0) - tail, m.maximum(x, m.constant(0.0)))


def _gelu_tanh(x: Tensor) -> Tensor:
    """x · (1 + tanh(sqrt(2/π) · (x + 0.044715·x³))) / 2."""
    from torch.nn import functional

    return functional.gelu(x, approximate="tanh")


def _exact_gelu_tanh(m: Arithmetic, x: Any) -> Any:
    slope = -2 * math.sqrt(2 / math.pi)
    exponent = x * m.fma(m.constant(slope * 0.044715), x * x, m.constant(slope))
    return x / (m.constant(1.0) + m.exp(exponent))


def _relu2(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al., "Primer", 2021)."""
    return x.relu().square()


def _exact_relu2(m: Arithmetic, x: Any) -> Any:
    positive = m.maximum(x, m.constant(0.0))
    return positive * positive


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("silu", _silu, _exact_silu),
        Activation("gelu", _gelu, _exact_gelu),
        Activation("gelu_tanh", _gelu_tanh, _exact_gelu_tanh),
        Activation("relu2", _relu2, _exact_relu2),
    )
}
"""Every activation by name; each is also an op of the ir with one input."""
