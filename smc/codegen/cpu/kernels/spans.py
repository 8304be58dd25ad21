"""Loops over a row's tiles of 32 columns, in step with the groups of columns that share a scale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Kernel, const


@contextmanager
def spans(kernel: Kernel, begin: Expr, tiles: Expr, size: int | None) -> Iterator[tuple[Expr, Expr, Expr]]:
    """Loop over spans of `size` of the `tiles` tiles from `begin` on (None: one span): yields a span's number in the
    row, its first tile and how many it has."""
    k = kernel
    if size is None:
        yield const(0, "int64"), begin, tiles
    elif size == 1:
        with k.loop(tiles, "span", begin=begin) as tile:
            yield tile, tile, const(1, "int64")
    else:
        with k.loop(k.let((tiles + const(size - 1, "int64")) // const(size, "int64"), "spans"), "span") as span:
            first = k.let(begin + span * size, "first")
            number = k.let(first // const(size, "int64"), "number")
            yield number, first, k.let(tirx.min(begin + tiles - first, const(size, "int64")), "count")


@contextmanager
def each_tile(kernel: Kernel, first: Expr, count: Expr) -> Iterator[Expr]:
    """Loop over the tiles of a span; a single one needs no loop."""
    if isinstance(count, tirx.IntImm):
        yield first
    else:
        with kernel.loop(count, "tile", begin=first) as tile:
            yield tile
