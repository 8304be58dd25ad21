"""Rotary embedding (Su et al., "RoFormer", 2021); a pair has one element in either half of a head."""

from __future__ import annotations

from collections.abc import Iterator

from smc.codegen.cpu.builder import Expr, Kernel, Pointer, const, dtype_of, fma
from smc.codegen.cpu.kernels.vector_math import LANES
from smc.codegen.kernels.abi import AttentionShape


def rotated_lanes(shape: AttentionShape) -> int:
    """How many elements of a half of a head come at once where it is rotated."""
    return next(n for n in (16, 8, 4, 2, 1) if shape.head_dim // 2 % n == 0)


def rotated_head(
    k: Kernel, shape: AttentionShape, x: Pointer, start: Expr, rope: Pointer, token: Expr
) -> Iterator[tuple[Expr, Expr]]:
    """Goes through the head of q or k that begins at `start`: pairs of a place in the head and the elements from it on.

    (x1, x2) → (x1·cos − x2·sin, x2·cos + x1·sin); where the layer does not rotate, x. rope: float32
    [tokens][2][head_dim/2] cosines and sines; token: int64.
    """
    if not shape.rotary:
        whole = shape.head_dim // LANES * LANES
        for d in range(0, whole, LANES):
            yield d, x.load(start + d, LANES)
        for d in range(whole, shape.head_dim):
            yield d, x.load(start + d)
        return
    half, lanes = shape.head_dim // 2, rotated_lanes(shape)
    cosines = k.let(token * shape.head_dim, "cosines")
    with k.loop(const(half // lanes, "int64"), "pair") as pair:
        d = k.let(pair * lanes, "d")
        cosine = k.let(rope.load(cosines + d, lanes), "cos")
        sine = k.let(rope.load(cosines + d + half, lanes), "sin")
        low, high = k.let(x.load(start + d, lanes), "low"), k.let(x.load(start + d + half, lanes), "high")
        zero = const(0.0, dtype_of(low))
        yield d, fma(low, cosine, zero - high * sine)
        yield d + half, fma(high, cosine, low * sine)
