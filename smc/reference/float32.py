"""float32 arithmetic as the kernels have it: fused multiply-adds, the exponential, sums over lanes, all bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 16
"""Lanes of the vectors that docs/numerics.md speaks of, whatever a machine's registers hold."""

_TIE = -(1 << 63)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c of float32 tensors (broadcast), rounded once."""
    return round_sum(a.double() * b.double(), c.double())


def round_sum(product: Tensor, addend: Tensor) -> Tensor:
    """product + addend, float64 tensors, rounded once to float32 (to nearest even).

    Rounding to float64 and then to float32 errs only where the float64 sum lies halfway between two float32 numbers: the
    low 29 bits of its significand are then 1 and 28 zeros. There the error of the sum decides, which is exact in float64
    (Knuth's TwoSum). Results below 2**-126, where float32 has fewer bits, are rounded twice.
    """
    total = product + addend
    halfway = (total.view(torch.int64) << 35) == _TIE
    if halfway.any():
        sums, first, second = (t.expand_as(total)[halfway] for t in (total, product, addend))
        rest = sums - first
        error = (first - (sums - rest)) + (second - rest)
        away = torch.nextafter(sums, torch.copysign(torch.full_like(sums, torch.inf), error))
        total[halfway] = torch.where(error == 0, sums, away)
    return total.float()


def exp(x: Tensor) -> Tensor:
    """e**x of float32: 2**n times the Taylor polynomial of degree 7 on [-ln2/2, ln2/2], x clamped to [-87, 88]."""
    x = x.clamp(-87, 88)
    n = torch.round(x * _constant(1.4426950408889634))
    r = fma(n, _constant(-0.693145751953125), x)
    r = fma(n, _constant(-1.428606765330187e-06), r)
    polynomial = _constant(1 / 5040).expand_as(r)
    for coefficient in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        polynomial = fma(polynomial, r, _constant(coefficient))
    return polynomial * ((n.int() + 127) << 23).view(torch.float32)


def tree_sum(lanes: Tensor) -> Tensor:
    """The sum over the last dim (a power of two): its halves are added, then their halves, and so on to one number."""
    while lanes.shape[-1] > 1:
        low, high = lanes.chunk(2, dim=-1)
        lanes = low + high
    return lanes[..., 0]


def _constant(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)
