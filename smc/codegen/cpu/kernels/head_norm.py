"""Norms of single heads: of q and k while attention reads them, and layer norms, which are whole kernels.

A head is shorter than a padded row, and what lies behind it is another head: loads end where it does.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Kernel, Pointer, broadcast, cast, const, fma, intrinsic, lanes_of
from smc.codegen.cpu.kernels.vector_math import LANES, add, horizontal
from smc.codegen.kernels.layout import TILE
from smc.codegen.kernels.specs import HeadLayerNormKernel
from smc.targets import CpuLevel

VECTOR = f"float32x{LANES}"


@dataclass(frozen=True)
class HeadNorm:
    """How q or k is normed head by head: the weights [head_dim], and epsilon."""

    weight: Pointer
    eps: Expr

    def factor(self, k: Kernel, x: Pointer, start: Expr, head_dim: int) -> Expr:
        """1 / sqrt(mean square + eps) of the head that begins at `start`, its sums as those of a row."""
        squares = [k.register(const(0.0, VECTOR), "squares") for _ in range(2)]
        with k.loop(const(head_dim // TILE, "int64"), "tile") as tile:
            for half, register in enumerate(squares):
                value = k.let(x.load(start + tile * TILE + half * LANES, LANES), "x")
                k.set(register, fma(value, value, register.value))
        whole = head_dim // TILE * TILE
        for register in squares:
            count = min(LANES, head_dim - whole)
            if count > 0:
                value = few(k, x, start + whole, count)
                k.set(register, fma(value, value, register.value))
            whole += LANES
        total = horizontal(k, squares[0].value + squares[1].value, add)
        mean = total / const(float(head_dim), "float32")
        root = intrinsic("float32", "llvm.sqrt", mean + self.eps)
        return k.let(const(1.0, "float32") / root, "factor")

    def apply(self, values: Expr, factor: Expr, d: Expr) -> Expr:
        """Some channels of a head, from channel d on, normed."""
        lanes = lanes_of(values)
        return values * broadcast(factor, lanes) * self.weight.load(d, lanes)


def few(k: Kernel, x: Pointer, start: Expr, count: int) -> Expr:
    """A vector of the next `count` channels, the other lanes 0: memory behind them must not be read."""
    if count == LANES:
        return k.let(x.load(start, LANES), "x")
    vector = const(0.0, VECTOR)
    for lane in range(count):
        here = _lanes() < broadcast(const(lane, "int32"), LANES)
        value = broadcast(k.let(x.load(start + lane), "x"), LANES)
        vector = tirx.Select(here, vector, value) if lane else value
    return k.let(_first(vector, count), "x")


def _lanes() -> Expr:
    return tirx.Ramp(const(0, "int32"), const(1, "int32"), LANES)


def _first(vector: Expr, count: int) -> Expr:
    """The first `count` lanes, the others 0."""
    if count == LANES:
        return vector
    return tirx.Select(_lanes() < broadcast(const(count, "int32"), LANES), vector, const(0.0, VECTOR))


def head_layer_norm_kernel(name: str, spec: HeadLayerNormKernel, level: CpuLevel) -> Kernel:
    """Norms the tokens begin…end of `tokens`; x and out have rows of `stride` floats, weight those of all heads."""
    k = Kernel(name, spec.signature())
    x, weight, out = k.pointer("x"), k.pointer("weight"), k.pointer("out")
    heads, stride, eps = k.scalar("heads"), k.scalar("stride"), k.scalar("eps")
    begin, end = k.scalar("begin"), k.scalar("end")
    stride64, count = k.let(cast(stride, "int64"), "stride"), k.let(cast(heads, "int64"), "heads")
    with k.loop(end - begin, "token", begin=begin) as token, k.loop(count, "head") as head:
        column = k.let(head * const(spec.head_dim, "int64"), "column")
        start = k.let(cast(token, "int64") * stride64 + column, "start")
        _norm_head(k, spec.head_dim, (x, weight, out), start, column, eps)
    return k


def _norm_head(
    k: Kernel, head_dim: int, pointers: tuple[Pointer, Pointer, Pointer], start: Expr, column: Expr, eps: Expr
) -> None:
    """One head: its sums in two vectors, as those of a row."""
    x, weight, out = pointers
    counts = [min(LANES, head_dim - place) for place in range(0, head_dim, LANES)]
    values = [few(k, x, start + place * LANES, count) for place, count in enumerate(counts)]
    dim = const(float(head_dim), "float32")
    mean = k.let(_sum(k, values, [None] * len(values)) / dim, "mean")
    spread = broadcast(mean, LANES)
    centered = [k.let(_first(v - spread, count), "centered") for v, count in zip(values, counts, strict=True)]
    variance = _sum(k, centered, centered) / dim
    factor = k.let(const(1.0, "float32") / intrinsic("float32", "llvm.sqrt", variance + eps), "factor")
    for place, count in enumerate(counts):
        first = place * LANES
        if count == LANES:
            result = centered[place] * broadcast(factor, LANES) * weight.load(column + first, LANES)
            k.store(out, start + first, result)
            continue
        for lane in range(first, first + count):
            value = (x.load(start + lane) - mean) * factor * weight.load(column + lane)
            k.store(out, start + lane, value)


def _sum(k: Kernel, values: list[Expr], factors: list[Expr] | list[None]) -> Expr:
    """The sum of vectors, or of their products: alternately into two vectors, then as a tree."""
    sums = [k.register(const(0.0, VECTOR), "sums") for _ in range(2)]
    for place, (value, factor) in enumerate(zip(values, factors, strict=True)):
        register = sums[place % 2]
        k.set(register, register.value + value if factor is None else fma(value, factor, register.value))
    return horizontal(k, sums[0].value + sums[1].value, add)
