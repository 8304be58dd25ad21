"""Arithmetic on vectors of 16 floats that kernels share: sums and maxima over lanes, magnitudes, exponentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tvm.tirx as tirx

from smc.codegen.cpu.builder import (
    Expr,
    Kernel,
    broadcast,
    const,
    dtype_of,
    fma,
    intrinsic,
    lanes_of,
    reinterpret,
    shuffle,
    shuffle_pair,
)
from smc.targets import CpuLevel

LANES = 16
"""Vectors here have 16 floats whatever the level: LLVM splits them where registers are narrower."""


def horizontal(kernel: Kernel, vector: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes combined in a fixed tree: halves with halves."""
    half = lanes_of(vector) // 2
    while half >= 1:
        vector = kernel.let(vector, "tree")
        vector = combine(shuffle(vector, range(half)), shuffle(vector, range(half, 2 * half)))
        half //= 2
    return kernel.let(vector, "total")


def horizontal_each(kernel: Kernel, vectors: Sequence[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes of every vector combined, in `horizontal`'s tree: one vector with a segment of equal lanes per input (a
    power of two of them), or the number itself if there is one input."""
    if len(vectors) == 1:
        return horizontal(kernel, vectors[0], combine)
    lanes = segment = lanes_of(vectors[0])
    while len(vectors) > 1:
        segment //= 2
        low = [i for i in range(2 * lanes) if i // segment % 2 == 0]
        pairs = [vectors[i : i + 2] for i in range(0, len(vectors), 2)]
        vectors = [
            kernel.let(combine(shuffle_pair(p, low), shuffle_pair(p, [i + segment for i in low])), "tree")
            for p in pairs
        ]
    [vector] = vectors
    while segment > 1:
        segment //= 2
        vector = kernel.let(combine(vector, shuffle(vector, [i ^ segment for i in range(lanes)])), "tree")
    return vector


def segment(value: Expr, number: int, count: int) -> Expr:
    """What `horizontal_each` gave for one of `count` vectors, in every lane."""
    if count == 1:
        return broadcast(value, LANES)
    size = LANES // count
    return shuffle(value, [number * size + i % size for i in range(LANES)])


def lane(value: Expr, number: int, count: int) -> Expr:
    """What `horizontal_each` gave for one of `count` vectors, as a number."""
    return value if count == 1 else shuffle(value, [number * lanes_of(value) // count])


def add(a: Expr, b: Expr) -> Expr:
    """a + b, for `horizontal`."""
    return a + b


def magnitude(x: Expr) -> Expr:
    """|x| of 16 floats."""
    return intrinsic(f"float32x{LANES}", "llvm.fabs", x)


def nearest(level: CpuLevel, x: Expr) -> Expr:
    """16 floats rounded to int32, halves to even, by one instruction per vector of the level."""
    if level.family == "x86":
        return intrinsic(f"int32x{LANES}", "llvm.lrint", x)
    # LLVM would take two instructions for lrint, which may signal that it was inexact.
    quarters = [shuffle(x, range(first, first + 4)) for first in range(0, LANES, 4)]
    integers = [intrinsic("int32x4", "llvm.aarch64.neon.fcvtns.v4i32.v4f32", quarter) for quarter in quarters]
    return shuffle_pair(integers, range(LANES))


EXP2_COEFFICIENTS = (
    1.0,
    0.6931470036506653,
    0.24022246897220612,
    0.0555071085691452,
    0.009671291336417198,
    0.0013269521296024323,
)
"""Of r**0 … r**5, float32: the least relative error to 2**r on [-1/2, 1/2], 9.4e-8, where 2**0 is exactly 1.

Found by weighted least squares whose weights follow the error (Lawson's algorithm), coefficient by coefficient: one is
rounded to float32 and those of higher powers are fitted again.
"""

ROUNDER = 1.5 * 2**23
"""Added to a float32 below 2**22 in magnitude, it leaves the nearest integer in the low bits of the sum."""


def exp(kernel: Kernel, x: Expr) -> Expr:
    """e**x of float32, a vector or a number; exp(0) is exactly 1.

    x is clamped to [-87, 88], where float32 neither vanishes nor overflows. The relative error is below 1.6e-7 +
    1.4e-8 |x|: that of `exp2`, and that of log2(e) as a float32.
    """
    dtype = dtype_of(x)
    x = kernel.let(tirx.max(tirx.min(x, const(88.0, dtype)), const(-87.0, dtype)), "x")
    log2_e, rounder = const(math.log2(math.e), dtype), const(ROUNDER, dtype)
    shifted = kernel.let(fma(x, log2_e, rounder), "shifted")
    return _power(kernel, shifted, fma(x, log2_e, rounder - shifted))


def exp2(kernel: Kernel, x: Expr) -> Expr:
    """2**x of float32, a vector or a number; exp2(0) is exactly 1.

    x is at most 127; from -127 down the result is exactly 0. The relative error is below 1.6e-7 down to 2**-126, the
    absolute one 2**-127 below that.
    """
    dtype = dtype_of(x)
    x = kernel.let(tirx.max(x, const(-127.0, dtype)), "x")
    rounder = const(ROUNDER, dtype)
    shifted = kernel.let(x + rounder, "shifted")
    return _power(kernel, shifted, x + (rounder - shifted))


def _power(kernel: Kernel, shifted: Expr, r: Expr) -> Expr:
    """2**n · 2**r: n, an integer, are the low bits of `shifted`; r: in [-1/2, 1/2]."""
    dtype = dtype_of(r)
    integers = dtype.replace("float", "int")
    r = kernel.let(r, "r")
    *rest, polynomial = (const(c, dtype) for c in EXP2_COEFFICIENTS)
    for coefficient in reversed(rest):
        polynomial = fma(polynomial, r, coefficient)
    # No conversion is needed: shift n from the low bits of the sum above to the exponent.
    exponent = reinterpret(shifted, integers) << const(23, integers)
    return kernel.let(reinterpret(reinterpret(polynomial, integers) + exponent, dtype), "power")


def tanh(kernel: Kernel, x: Expr) -> Expr:
    """The hyperbolic tangent of float32, a vector or a number: E / (E + 2), where E = e**2x - 1.

    x is clamped to [-10, 10], where the result is -1 or 1. E = 2**n · p + (2**n - 1), p the polynomial of `exp2`
    without its 1: small x lose nothing. The relative error is below 1e-6.
    """
    dtype = dtype_of(x)
    integers = dtype.replace("float", "int")
    x = kernel.let(tirx.max(tirx.min(x, const(10.0, dtype)), const(-10.0, dtype)), "x")
    twice, rounder, one = const(2 * math.log2(math.e), dtype), const(ROUNDER, dtype), const(1.0, dtype)
    shifted = kernel.let(fma(x, twice, rounder), "shifted")
    r = kernel.let(fma(x, twice, rounder - shifted), "r")
    _, *rest, polynomial = (const(c, dtype) for c in EXP2_COEFFICIENTS)
    for coefficient in reversed(rest):
        polynomial = fma(polynomial, r, coefficient)
    exponent = reinterpret(shifted, integers) << const(23, integers)
    power = kernel.let(reinterpret(reinterpret(one, integers) + exponent, dtype), "power")
    minus_one = kernel.let(fma(power, polynomial * r, power - one), "minus_one")
    return kernel.let(minus_one / (minus_one + const(2.0, dtype)), "tanh")


class Vectors:
    """`smc.ir.activations.Arithmetic` in a kernel: on vectors of 16 floats."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.dtype = kernel, f"float32x{LANES}"

    def constant(self, value: float) -> Expr:
        """The number in every lane."""
        return const(value, self.dtype)

    def fma(self, a: Expr, b: Expr, c: Expr) -> Expr:
        """a * b + c, rounded once."""
        return self.kernel.let(fma(a, b, c), "fma")

    def maximum(self, a: Expr, b: Expr) -> Expr:
        """The larger one."""
        return tirx.max(a, b)

    def absolute(self, x: Expr) -> Expr:
        """|x|."""
        return magnitude(x)

    def exp(self, x: Expr) -> Expr:
        """e**x, as above."""
        return exp(self.kernel, x)

    def tanh(self, x: Expr) -> Expr:
        """As above."""
        return tanh(self.kernel, x)
