"""Many tokens on x86 (int8 inputs): weights are unpacked once for all of them.

Multiplying a tile by a few tokens is fast, and unpacking takes as long if codes are split into planes, looked up or
packed in base 3. So a kernel for many tokens cuts its rows into blocks of columns (as in Goto and van de Geijn, Anatomy
of High-Performance Matrix Multiplication, 2008): a block is unpacked into the panel (panel.py), which stays in the
first cache, and then multiplied with all tokens of a chunk, whose sums wait on the stack from one block to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Pointer, Register, cast, const
from smc.codegen.cpu.kernels.activations import Inputs, Source
from smc.codegen.cpu.kernels.dot import Dot, dot_for
from smc.codegen.cpu.kernels.epilogue import Epilogue
from smc.codegen.cpu.kernels.integer_products import IntegerProducts
from smc.codegen.cpu.kernels.panel import Panel, PanelWeights
from smc.codegen.cpu.kernels.weights import PackedMatrix, PackedWeights, RowTile, row_tile
from smc.codegen.kernels.groups import tiles_of_scales
from smc.codegen.kernels.layout import ROW_BLOCK
from smc.codegen.kernels.specs import Tile

MANY_TOKENS = 16
"""Unpacking into a panel pays with this many tokens or more."""

CHUNK_TOKENS = 128
"""Tokens that share a panel: their sums take 16 KiB of stack."""


@dataclass(frozen=True)
class _Pass:
    """A tile of tokens (their numbers, int64) by a row tile: its sums in registers, and where in the chunk's."""

    tokens: list[Expr]
    rows: RowTile
    dot: Dot
    source: Source
    accumulators: list[list[Register]]
    place: Expr


class ManyTokens:
    """Multiplies many tokens by way of a panel."""

    def __init__(self, matrix: PackedMatrix, inputs: Inputs, epilogue: Epilogue, tile: Tile) -> None:
        self.matrix, self.inputs, self.epilogue, self.tile = matrix, inputs, epilogue, tile
        self.kernel, self.level = matrix.kernel, matrix.level

    def multiply(self, first: Expr, tokens: Expr) -> Expr:
        """Multiply whole tiles of tokens by the 32 rows from `first` on, if there are enough tokens. Returns the number
        of these tokens (int32)."""
        k, step, lanes = self.kernel, self.tile.tokens, self.level.lanes
        enough = tokens >= const(MANY_TOKENS, "int32")
        count = k.let(tirx.Select(enough, tokens // const(step, "int32"), const(0, "int32")), "count")
        panel, most = Panel(k, self.matrix.encoding, self.level), CHUNK_TOKENS // step
        # If weights and inputs have one scale per row, sums stay integers until the row's end.
        whole_rows = tiles_of_scales(self.matrix.encoding) == (None, None)
        dtype = "int32" if whole_rows else "float32"
        sums = k.array(dtype, CHUNK_TOKENS * ROW_BLOCK, "panel_sums")
        with k.loop((count + const(most - 1, "int32")) // const(most, "int32"), "chunk") as chunk:
            begin = k.let(chunk * most, "begin")
            some = k.let(tirx.min(count - begin, const(most, "int32")), "some")
            with k.loop(cast(some, "int64") * (step * ROW_BLOCK // lanes), "clear") as place:
                k.store(sums, place * lanes, const(0, f"{dtype}x{lanes}"))
            rows = row_tile(k, self.level, first, const(0, "int64"), ROW_BLOCK)
            weights = PackedWeights(self.matrix, rows, panel.packed_form)
            with self._blocks(panel) as (tile, tiles):
                panel.fill(weights, tile, tiles)
                for one in self._passes(panel, sums, first, begin, some):
                    products = self._products(panel, one, tile, one.accumulators)
                    if whole_rows:
                        products.add_unflushed(one.accumulators, tile, tiles)
                    else:
                        products.add(tile, tiles)
                    for m, registers in enumerate(one.accumulators):
                        for u, register in enumerate(registers):
                            k.store(sums, one.place + (m * ROW_BLOCK + u * lanes), register.value)
            for one in self._passes(panel, sums, first, begin, some):
                finished = one.accumulators
                if whole_rows:
                    zero = const(0.0, f"float32x{lanes}")
                    finished = [[k.register(zero, "acc") for _ in row] for row in one.accumulators]
                    products = self._products(panel, one, const(0, "int64"), finished)
                    products.finish_rows(one.accumulators, self.matrix.tiles)
                self.epilogue.finish(one.rows, one.tokens, finished, one.dot)
        return k.let(count * step, "done")

    @staticmethod
    def _products(panel: Panel, one: _Pass, begin: Expr, accumulators: list[list[Register]]) -> IntegerProducts:
        """A pass by the panel's weights, of tile `begin` on."""
        return IntegerProducts(PanelWeights(panel, one.rows, begin), one.dot, one.source, accumulators)

    @contextmanager
    def _blocks(self, panel: Panel) -> Iterator[tuple[Expr, Expr]]:
        """Loop over blocks of a row's tiles: yields the first tile and how many there are."""
        k, tiles, most = self.kernel, self.matrix.tiles, const(panel.tiles, "int64")
        with k.loop(k.let((tiles + most - const(1, "int64")) // most, "blocks"), "block_of_tiles") as block:
            first = k.let(block * most, "first")
            yield first, k.let(tirx.min(tiles - first, most), "count")

    def _passes(self, panel: Panel, sums: Pointer, first: Expr, begin: Expr, some: Expr) -> Iterator[_Pass]:
        """Loops over `some` tiles of tokens from `begin` on, and row tiles from row `first` on."""
        k, step, rows, lanes = self.kernel, self.tile.tokens, self.tile.rows, self.level.lanes
        with k.loop(some, "token_tile") as t, k.loop(const(ROW_BLOCK // rows, "int64"), "pass") as index:
            tile = row_tile(k, self.level, first, k.let(index * rows, "row"), rows)
            token = k.let(cast((begin + t) * step, "int64"), "token")
            place = k.let(cast(t, "int64") * (step * ROW_BLOCK) + tile.offset, "place")
            accumulators = [
                [
                    k.register(sums.load(place + (m * ROW_BLOCK + u * lanes), lanes), "acc")
                    for u in range(len(tile.units))
                ]
                for m in range(step)
            ]
            dot = dot_for(k, self.level, panel.form, step)
            source = Source(k, self.level, self.inputs, token, step)
            yield _Pass([token + m for m in range(step)], tile, dot, source, accumulators, place)
