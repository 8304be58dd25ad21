"""Groups: loops over a row's tiles of 32 columns, in step with the groups of columns that share a scale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tvm.tirx as tirx

from smc.codegen.kernels.builder import Expr, Kernel, const
from smc.codegen.kernels.unpack import QUADS
from smc.codegen.layout import TILE
from smc.ir import Encoding


def tiles_of_scales(encoding: Encoding) -> tuple[int | None, int | None]:
    """For how many tiles a scale of the weights and one of the inputs hold; None: for the whole row."""
    sizes = encoding.group, encoding.activation_group if encoding.activation == "i8" else None
    weights, inputs = (-(-size // TILE) if isinstance(size, int) else None for size in sizes)
    return weights, inputs


def flushes_tiles(encoding: Encoding) -> bool:
    """Whether the sums of every tile, or half of one, leave at once: no scale holds for more columns."""
    return 1 in tiles_of_scales(encoding)


def piece_quads(encoding: Encoding, half: int) -> range:
    """The quads of a piece that is flushed at once: a tile, or in groups of 16 a half of one."""
    size = QUADS // 2 if encoding.group == 16 else QUADS
    return range(half * size, (half + 1) * size)


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
