"""Norms of rows of activations.

Every activation row is padded to a multiple of 32 floats, and the padding holds zeros; so no vector ends early.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import tvm.tirx as tirx

from smc.codegen.cpu.builder import (
    Expr,
    Kernel,
    Pointer,
    Register,
    broadcast,
    cast,
    const,
    dtype_of,
    fma,
    intrinsic,
    lanes_of,
    rounded_product,
)
from smc.codegen.cpu.kernels.rows import rows_together, tile_of_rows
from smc.codegen.cpu.kernels.sink import Halves, Sink
from smc.codegen.cpu.kernels.vector_math import LANES, add, horizontal_each, segment
from smc.codegen.kernels.layout import TILE
from smc.codegen.kernels.specs import LayerNormKernel, RmsNormKernel
from smc.targets import CpuLevel

VECTOR = f"float32x{LANES}"


def rms_norm_kernel(name: str, spec: RmsNormKernel, level: CpuLevel) -> Kernel:
    """Norms the tokens begin…end of `tokens`.

    Rows have `stride` floats. Mean square over the true `width`; x·(1/sqrt(mean + eps)), then times weight, as
    transformers rounds it; then plus the residual, whose rows are like those of x.
    """
    k = Kernel(name, spec.signature())
    x, weight = k.pointer("x"), k.pointer("weight")
    residual = k.pointer("residual") if spec.residual else None
    sink = Sink(k, level, spec.forms)
    width, stride, eps = k.scalar("width"), k.scalar("stride"), k.scalar("eps")
    begin, end = k.scalar("begin"), k.scalar("end")
    stride64 = k.let(cast(stride, "int64"), "stride")
    tiles = k.let(stride64 >> const(5, "int64"), "tiles")
    for tokens in rows_together(k, level, begin, end):
        starts = [k.let(token * stride64, "start") for token in tokens]
        factors = _factors(k, _squares(k, x, starts, tiles), width, eps, len(starts))
        load = functools.partial(_normed_tile, k, (x, weight, residual), starts, factors)
        sink.store(tokens, stride64, const(0, "int64"), tiles, load)
    return k


def _squares(k: Kernel, x: Pointer, starts: Sequence[Expr], tiles: Expr) -> list[list[Register]]:
    """Sums of squares of the rows that begin at `starts`, in two vectors per row."""
    squares = [[k.register(const(0.0, VECTOR), "squares") for _ in range(2)] for _ in starts]
    with k.loop(tiles, "tile") as tile:
        for registers, halves in zip(squares, tile_of_rows(k, x, starts, tile), strict=True):
            for register, value in zip(registers, halves, strict=True):
                k.set(register, fma(value, value, register.value))
    return squares


def _factors(k: Kernel, squares: Sequence[Sequence[Register]], width: Expr, eps: Expr, rows: int) -> list[Expr]:
    """1 / sqrt(mean square + eps) of some rows, each in every lane of a vector."""
    mean = _means(k, squares, width)
    root = intrinsic(dtype_of(mean), "llvm.sqrt", mean + broadcast(eps, lanes_of(mean)))
    factors = k.let(const(1.0, dtype_of(mean)) / root, "factors")
    return [k.let(segment(factors, m, rows), "factor") for m in range(rows)]


def _means(k: Kernel, sums: Sequence[Sequence[Register]], width: Expr) -> Expr:
    """The means of rows from their sums, two vectors per row, as `horizontal_each` returns them."""
    totals = horizontal_each(k, [low.value + high.value for low, high in sums], add)
    return totals / broadcast(cast(width, "float32"), lanes_of(totals))


def _normed_tile(
    k: Kernel,
    pointers: tuple[Pointer, Pointer, Pointer | None],
    starts: Sequence[Expr],
    factors: Sequence[Expr],
    tile: Expr,
) -> list[Halves]:
    """A tile of the rows that begin at `starts`, times their factors, times the weights of its columns."""
    x, weight, residual = pointers
    low, high = (k.let(weight.load(tile * TILE + half, LANES), "weight") for half in (0, LANES))
    rows = tile_of_rows(k, x, starts, tile)
    if residual is None:
        return [
            (k.let(first * factor * low, "normed"), k.let(second * factor * high, "normed"))
            for (first, second), factor in zip(rows, factors, strict=True)
        ]
    return [
        (
            k.let(rounded_product(first * factor, low) + added[0], "normed"),
            k.let(rounded_product(second * factor, high) + added[1], "normed"),
        )
        for (first, second), factor, added in zip(
            rows, factors, tile_of_rows(k, residual, starts, tile), strict=True
        )
    ]


def layer_norm_kernel(name: str, spec: LayerNormKernel, level: CpuLevel) -> Kernel:
    """Norms the tokens begin…end of `tokens`; rows have `stride` floats.

    Mean and variance over the true `width`, the variance from the squares of the differences to the mean.
    """
    k = Kernel(name, spec.signature())
    x, weight, bias = k.pointer("x"), k.pointer("weight"), k.pointer("bias") if spec.bias else None
    sink = Sink(k, level, spec.forms)
    width, stride, eps = k.scalar("width"), k.scalar("stride"), k.scalar("eps")
    begin, end = k.scalar("begin"), k.scalar("end")
    stride64 = k.let(cast(stride, "int64"), "stride")
    tiles = k.let(stride64 >> const(5, "int64"), "tiles")
    for tokens in rows_together(k, level, begin, end):
        starts = [k.let(token * stride64, "start") for token in tokens]
        sums = [[k.register(const(0.0, VECTOR), "sums") for _ in range(2)] for _ in starts]
        with k.loop(tiles, "tile") as tile:
            for registers, halves in zip(sums, tile_of_rows(k, x, starts, tile), strict=True):
                for register, value in zip(registers, halves, strict=True):
                    k.set(register, register.value + value)
        totals = k.let(_means(k, sums, width), "means")
        means = [k.let(segment(totals, m, len(starts)), "mean") for m in range(len(starts))]
        rows = _Centered(k, x, width, starts, means)
        squares = [[k.register(const(0.0, VECTOR), "squares") for _ in range(2)] for _ in starts]
        with k.loop(tiles, "tile") as tile:
            for registers, halves in zip(squares, rows.tile(tile), strict=True):
                for register, value in zip(registers, halves, strict=True):
                    k.set(register, fma(value, value, register.value))
        factors = _factors(k, squares, width, eps, len(starts))
        load = functools.partial(_affine_tile, k, rows, weight, bias, factors)
        sink.store(tokens, stride64, const(0, "int64"), tiles, load)
    return k


@dataclass(frozen=True)
class _Centered:
    """The rows that begin at `starts` less their means; beyond the width 0."""

    kernel: Kernel
    x: Pointer
    width: Expr
    starts: Sequence[Expr]
    means: Sequence[Expr]

    def tile(self, tile: Expr) -> list[Halves]:
        """A tile of each."""
        k = self.kernel
        rows = tile_of_rows(k, self.x, self.starts, tile)
        return [(self._half(rows[m][0], m, tile, 0), self._half(rows[m][1], m, tile, LANES)) for m in range(len(rows))]

    def _half(self, values: Expr, row: int, tile: Expr, half: int) -> Expr:
        k = self.kernel
        first = k.let(cast(tile * TILE + half, "int32"), "first")
        inside = tirx.Ramp(first, const(1, "int32"), LANES) < broadcast(self.width, LANES)
        return k.let(tirx.Select(inside, values - self.means[row], const(0.0, VECTOR)), "centered")


def _affine_tile(
    k: Kernel, rows: _Centered, weight: Pointer, bias: Pointer | None, factors: Sequence[Expr], tile: Expr
) -> list[Halves]:
    """A tile of centered rows times their factors, times the weights of its columns, plus their biases."""
    places = [k.let(tile * TILE + half, "place") for half in (0, LANES)]
    weights = [k.let(weight.load(place, LANES), "weight") for place in places]
    biases = [k.let(bias.load(place, LANES), "bias") for place in places] if bias else None
    results = []
    for halves, factor in zip(rows.tile(tile), factors, strict=True):
        normed = [k.let(half * factor, "scaled") for half in halves]
        pairs = [
            k.let(fma(normed[n], weights[n], biases[n]) if biases else normed[n] * weights[n], "normed")
            for n in range(2)
        ]
        results.append((pairs[0], pairs[1]))
    return results
