"""Rotary embedding (Su et al., "RoFormer", 2021); a pair has one element in either half of a head."""

from __future__ import annotations

from collections.abc import Iterator

from smc.codegen.cpu.builder import Expr, Kernel, Pointer, const, dtype_of, fma
from smc.codegen.cpu.kernels.head_norm import HeadNorm
from smc.codegen.cpu.kernels.vector_math import LANES
from smc.codegen.kernels.abi import AttentionShape


def rotated_lanes(shape: AttentionShape) -> int:
    """How many elements of a half of the rotated channels are rotated at once."""
    return next(n for n in (16, 8, 4, 2, 1) if shape.pairs % n == 0)


def rotated_head(
    k: Kernel, shape: AttentionShape, x: Pointer, start: Expr, rope: Pointer, token: Expr, norm: HeadNorm | None
) -> Iterator[tuple[Expr, Expr]]:
    """Goes through the head of q or k that begins at `start`: pairs of a place in the head and the elements from it on.

    The head is normed first, where there is a norm. (x1, x2) → (x1·cos − x2·sin, x2·cos + x1·sin) for channels i and
    i + pairs; the others stay. rope: float32 [tokens][2][pairs] cosines and sines; token: int64.
    """
    factor = norm.factor(k, x, start, shape.head_dim) if norm else None

    def load(d: Expr, lanes: int) -> Expr:
        values = x.load(start + d, lanes)
        return k.let(norm.apply(values, factor, d) if norm else values, "x")

    half = shape.pairs
    if half:
        lanes = rotated_lanes(shape)
        cosines = k.let(token * (2 * half), "cosines")
        with k.loop(const(half // lanes, "int64"), "pair") as pair:
            d = k.let(pair * lanes, "d")
            cosine = k.let(rope.load(cosines + d, lanes), "cos")
            sine = k.let(rope.load(cosines + d + half, lanes), "sin")
            low, high = load(d, lanes), load(d + half, lanes)
            zero = const(0.0, dtype_of(low))
            yield d, fma(low, cosine, zero - high * sine)
            yield d + half, fma(high, cosine, low * sine)
    for d in range(2 * half, shape.head_dim):
        place = d - 2 * half
        vectors = (shape.head_dim - 2 * half) // LANES * LANES
        if place >= vectors or place % LANES == 0:
            yield const(d, "int64"), load(const(d, "int64"), LANES if place < vectors else 1)
