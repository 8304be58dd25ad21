"""float32 arithmetic of the kernels, bit for bit: fused multiply-adds, the exponential, sums over lanes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LANES = 16
"""The lanes of vectors in docs/numerics.md, whatever a machine's registers hold."""

# A float64 number lies halfway between two of float32 where the 29 bits that float32 lacks are 1 and 28 zeros: shifted
# to the top of a signed integer, that is the smallest there is.
_LOW_BITS, _HALF = 64 - 29, -(1 << 63)

# Numbers of this size have no fractions, so adding it rounds; 2**r on [-1/2, 1/2] as powers of r.
_ROUNDER = torch.tensor(1.5 * 2**23)
_EXP2 = (1.0, 0.6931470036506653, 0.24022246897220612, 0.0555071085691452, 0.009671291336417198, 0.0013269521296024323)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c of float32 tensors (broadcast), rounded once."""
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    low_bits = total.view(torch.int64) << _LOW_BITS
    if low_bits.min() == _HALF:
        middle = low_bits == _HALF
        total[middle] = _off_the_middle(*(t.expand_as(total)[middle] for t in (total, product, addend)))
    return total.float()


def sum_products(a: Tensor, b: Tensor) -> Tensor:
    """float32 [n, columns] and [m, columns] → float32 [n, m]: Σ a·b by one fma per column, from first to last."""
    total = a.new_empty(len(a), len(b), dtype=torch.float64)
    result, addend = torch.zeros_like(total, dtype=torch.float32), torch.zeros_like(total)
    bits, low_bits = total.view(torch.int64), torch.empty_like(total, dtype=torch.int64)
    for x, y in zip(a.T.double().contiguous(), b.T.double().contiguous(), strict=True):
        torch.addcmul(addend, x[:, None], y, out=total)
        if torch.bitwise_left_shift(bits, _LOW_BITS, out=low_bits).min() == _HALF:
            i, j = (low_bits == _HALF).nonzero(as_tuple=True)
            total[i, j] = _off_the_middle(total[i, j], x[i] * y[j], addend[i, j])
        addend.copy_(result.copy_(total))
    return result


def sum_in_order(products: Tensor) -> Tensor:
    """float64 [steps, …], products of two float32 each → float32 […]: from 0 one fma per step, from first to last."""
    total = products.new_empty(products[0].numel())
    result, addend = torch.zeros_like(total, dtype=torch.float32), torch.zeros_like(total)
    bits, low_bits = total.view(torch.int64), torch.empty_like(total, dtype=torch.int64)
    for product in products.flatten(1):
        torch.add(product, addend, out=total)
        if torch.bitwise_left_shift(bits, _LOW_BITS, out=low_bits).min() == _HALF:
            (near,) = (low_bits == _HALF).nonzero(as_tuple=True)
            total[near] = _off_the_middle(total[near], product[near], addend[near])
        addend.copy_(result.copy_(total))
    return result.view(products.shape[1:])


def _off_the_middle(total: Tensor, product: Tensor, addend: Tensor) -> Tensor:
    """float64 sums that lie halfway between two float32 numbers, moved to the side where the exact sum lies.

    All other sums may be rounded to float64 and then to float32 as if it were once. The error of a float64 sum is exact
    in float64 (Knuth's TwoSum), and so are products of float32. Only results below 2**-126, where float32 has fewer
    bits, may be rounded twice.
    """
    rest = total - product
    error = (product - (total - rest)) + (addend - rest)
    away = torch.nextafter(total, torch.copysign(torch.full_like(total, torch.inf), error))
    return torch.where(error == 0, total, away)


def exp(x: Tensor) -> Tensor:
    """e**x of float32, x clamped to [-87, 88]: 2**(x · log2(e)), the product not rounded."""
    x, log2_e = x.clamp(-87, 88), _constant(math.log2(math.e))
    shifted = fma(x, log2_e, _ROUNDER)
    return _power(shifted, fma(x, log2_e, _ROUNDER - shifted))


def exp2(x: Tensor) -> Tensor:
    """2**x of float32, for x up to 127; 0 from -127 on."""
    x = x.clamp(min=-127)
    shifted = x + _ROUNDER
    return _power(shifted, x + (_ROUNDER - shifted))


def _power(shifted: Tensor, r: Tensor) -> Tensor:
    """2**n · 2**r by a polynomial on [-1/2, 1/2]; n: `shifted` less _ROUNDER, added to the exponent's bits."""
    *rest, polynomial = map(_constant, _EXP2)
    for coefficient in reversed(rest):
        polynomial = fma(polynomial, r, coefficient)
    return (polynomial.view(torch.int32) + (shifted.view(torch.int32) << 23)).view(torch.float32)


def tree_sum(lanes: Tensor) -> Tensor:
    """The sum over the last dim (a power of two): its halves are added, then their halves, and so on to one number."""
    while lanes.shape[-1] > 1:
        low, high = lanes.chunk(2, dim=-1)
        lanes = low + high
    return lanes[..., 0]


def _constant(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent of float32, x clamped to [-10, 10]: E / (E + 2), where E = e**2x - 1.

    E = 2**n · p + (2**n - 1) by one fma, p the polynomial of `exp2` without its 1: small x lose nothing.
    """
    x, twice = x.clamp(-10, 10), _constant(2 * math.log2(math.e))
    shifted = fma(x, twice, _ROUNDER)
    r = fma(x, twice, _ROUNDER - shifted)
    _, *rest, polynomial = map(_constant, _EXP2)
    for coefficient in reversed(rest):
        polynomial = fma(polynomial, r, coefficient)
    power = (torch.ones(()).view(torch.int32) + (shifted.view(torch.int32) << 23)).view(torch.float32)
    minus_one = fma(power, polynomial * r, power - 1)
    return minus_one / (minus_one + 2)


class Float32:
    """`smc.ir.activations.Arithmetic` on float32 tensors."""

    def constant(self, value: float) -> Tensor:
        """A number, rounded to float32."""
        return _constant(value)

    def fma(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """a * b + c, rounded once."""
        return fma(a, b, c)

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        """The larger one."""
        return torch.maximum(a, b)

    def absolute(self, x: Tensor) -> Tensor:
        """|x|."""
        return x.abs()

    def exp(self, x: Tensor) -> Tensor:
        """e**x, as above."""
        return exp(x)

    def tanh(self, x: Tensor) -> Tensor:
        """As above."""
        return tanh(x)


FLOAT32 = Float32()
