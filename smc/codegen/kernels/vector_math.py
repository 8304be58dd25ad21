"""Arithmetic on vectors of 16 floats that kernels share: sums and maxima over lanes, magnitudes, exp."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm.tirx as tirx

from smc.codegen.kernels.builder import (
    Expr,
    Kernel,
    broadcast,
    cast,
    const,
    fma,
    intrinsic,
    reinterpret,
    shuffle,
    shuffle_pair,
)

LANES = 16
"""Vectors here have 16 floats whatever the level: LLVM splits them where registers are narrower."""


def horizontal(kernel: Kernel, vector: Expr, combine: Callable[[Expr, Expr], Expr], lanes: int = LANES) -> Expr:
    """All lanes combined in a fixed tree: halves with halves."""
    half = lanes // 2
    while half >= 1:
        vector = kernel.let(vector, "tree")
        vector = combine(shuffle(vector, range(half)), shuffle(vector, range(half, 2 * half)))
        half //= 2
    return kernel.let(vector, "total")


def horizontal_each(kernel: Kernel, vectors: Sequence[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes of every vector combined, in `horizontal`'s tree: one vector with a segment of equal lanes for each (a
    power of two of them), or the number itself if there is but one."""
    if len(vectors) == 1:
        return horizontal(kernel, vectors[0], combine)
    segment = LANES
    while len(vectors) > 1:
        segment //= 2
        low = [i for i in range(2 * LANES) if i // segment % 2 == 0]
        pairs = [vectors[i : i + 2] for i in range(0, len(vectors), 2)]
        vectors = [
            kernel.let(combine(shuffle_pair(p, low), shuffle_pair(p, [i + segment for i in low])), "tree")
            for p in pairs
        ]
    [vector] = vectors
    while segment > 1:
        segment //= 2
        vector = kernel.let(combine(vector, shuffle(vector, [i ^ segment for i in range(LANES)])), "tree")
    return vector


def segment(value: Expr, number: int, count: int) -> Expr:
    """What `horizontal_each` gave for one of `count` vectors, in every lane."""
    if count == 1:
        return broadcast(value, LANES)
    size = LANES // count
    return shuffle(value, [number * size + i % size for i in range(LANES)])


def lane(value: Expr, number: int, count: int) -> Expr:
    """What `horizontal_each` gave for one of `count` vectors, as a number."""
    return value if count == 1 else shuffle(value, [number * LANES // count])


def add(a: Expr, b: Expr) -> Expr:
    """a + b, for `horizontal`."""
    return a + b


def magnitude(x: Expr) -> Expr:
    """|x| of 16 floats."""
    return intrinsic(f"float32x{LANES}", "llvm.fabs", x)


def exp(kernel: Kernel, x: Expr, positive: bool = True) -> Expr:
    """e**x of a float32 vector: 2**n times a polynomial on [-ln2/2, ln2/2], within 1 ulp; exp(0) is exactly 1.

    The polynomial is the Taylor expansion to degree 7 (off by 5e-9), and n is added to its exponent; inputs are clamped
    to [-87, 88], where float32 neither vanishes nor overflows. positive: some may be above 0.
    """
    dtype = f"float32x{LANES}"
    x = tirx.min(x, const(88.0, dtype)) if positive else x
    x = kernel.let(tirx.max(x, const(-87.0, dtype)), "x")
    n = kernel.let(intrinsic(dtype, "llvm.nearbyint", x * const(1.4426950408889634, dtype)), "n")
    # ln 2 in two pieces, the first exact in the products with n.
    r = kernel.let(fma(n, const(-0.693145751953125, dtype), x), "r")
    r = kernel.let(fma(n, const(-1.428606765330187e-06, dtype), r), "r")
    polynomial = const(1 / 5040, dtype)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        polynomial = fma(polynomial, r, const(factor, dtype))
    exponent = cast(n, f"int32x{LANES}") << const(23, f"int32x{LANES}")
    return kernel.let(reinterpret(reinterpret(polynomial, f"int32x{LANES}") + exponent, dtype), "exp")
