"""Token blocks: many tokens on arm64 (int8 inputs), whose activations lie interleaved by 8 tokens (activations.py).

A tile's codes are unpacked into registers and stay there for many blocks of tokens, whose accumulators lie on the
kernel's stack, in the first cache. So the sums of every tile, or half of one, are flushed at once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Pointer, cast, const
from smc.codegen.cpu.kernels.activations import Inputs, Source, is_blocked
from smc.codegen.cpu.kernels.dot import ArmDot, dot_for
from smc.codegen.cpu.kernels.epilogue import Epilogue
from smc.codegen.cpu.kernels.integer_products import IntegerProducts
from smc.codegen.cpu.kernels.spans import spans
from smc.codegen.cpu.kernels.weights import GroupParts, PackedMatrix, PackedWeights, row_tile
from smc.codegen.kernels.abi import TOKEN_BLOCK
from smc.codegen.kernels.groups import flushes_tiles, piece_quads, tiles_of_scales
from smc.codegen.kernels.layout import ROW_BLOCK
from smc.codegen.kernels.specs import Tile
from smc.ir import Encoding
from smc.targets import CpuLevel

ARRAY_FLOATS, ARRAY_TOKENS = 248, 4
"""Accumulators in an array on a kernel's stack, a little less than 1 KiB, and the number of a block's tokens that share
an array."""


def has_stationary_codes(encoding: Encoding, level: CpuLevel) -> bool:
    """Whether tiles are unpacked once for many blocks of tokens: then each tile's sums must be flushed at once."""
    return encoding.rounds_inputs and is_blocked(level) and flushes_tiles(encoding)


@dataclass(frozen=True)
class _Block:
    """A block of 8 tokens (their numbers, int64), its accumulators loaded; and where each token's come from."""

    tokens: list[Expr]
    products: IntegerProducts
    places: list[tuple[Pointer, Expr]]


class TokenBlocks:
    """Multiplies blocks of 8 tokens."""

    def __init__(self, matrix: PackedMatrix, inputs: Inputs, epilogue: Epilogue, tile: Tile) -> None:
        self.matrix, self.inputs, self.epilogue, self.tile = matrix, inputs, epilogue, tile
        self.kernel, self.encoding, self.level = matrix.kernel, matrix.encoding, matrix.level

    def multiply(self, first: Expr, blocks: Expr) -> None:
        """The step's blocks of tokens, some of them at a time, by the 32 rows from `first` on."""
        k, rows = self.kernel, self.tile.rows
        most = min(ARRAY_FLOATS // (ARRAY_TOKENS * rows), self.tile.tokens // TOKEN_BLOCK)
        chunks = k.let((blocks + const(most - 1, "int32")) // const(most, "int32"), "chunks")
        with k.loop(const(ROW_BLOCK // rows, "int64"), "pass") as index, k.loop(chunks, "chunk") as chunk:
            weights = PackedWeights(self.matrix, row_tile(k, self.level, first, index * rows, rows))
            begin = k.let(chunk * most, "begin")
            count = k.let(tirx.min(blocks - begin, const(most, "int32")), "count")
            sums = self._new_sums(most)
            self._clear(sums, count)
            if self.encoding.has_partial_sums:
                self._add_with_parts(weights, sums, most, begin, count)
            else:
                self._add(weights, sums, begin, count, const(0, "int64"), self.matrix.tiles)
            with k.loop(count, "block") as index_of_block:
                block = self._take(weights, sums, begin, index_of_block)
                self.epilogue.finish(weights.rows, block.tokens, block.products.accumulators, block.products.dot)

    def _new_sums(self, blocks: int) -> list[Pointer]:
        """Arrays for the sums of so many blocks of tokens."""
        size = blocks * ARRAY_TOKENS * self.tile.rows
        return [self.kernel.array("float32", size, "sums") for _ in range(TOKEN_BLOCK // ARRAY_TOKENS)]

    def _clear(self, sums: list[Pointer], blocks: Expr) -> None:
        """All sums of so many blocks = 0."""
        lanes = self.level.lanes
        with self.kernel.loop(blocks * (ARRAY_TOKENS * self.tile.rows // lanes), "clear") as place:
            for array in sums:
                self.kernel.store(array, place * lanes, const(0.0, f"float32x{lanes}"))

    def _add_with_parts(self, weights: PackedWeights, sums: list[Pointer], most: int, begin: Expr, count: Expr) -> None:
        """Add all tiles of at most `most` blocks. The tiles of one input scale have sums of their own, which are added
        when the scale changes."""
        _, inputs = tiles_of_scales(self.encoding)
        parts = self._new_sums(most)
        self._clear(parts, count)
        with spans(self.kernel, const(0, "int64"), self.matrix.tiles, inputs) as (_, tile, tiles):
            self._add(weights, parts, begin, count, tile, tiles)
            with self.kernel.loop(count, "block") as index:
                part = self._take(weights, parts, begin, index)
                block = self._take(weights, sums, begin, index)
                block.products.add_parts(part.products.accumulators, tile)
                self._store(block)
                # Clear the sums for the next scale here: LLVM would make a separate loop a call of memset.
                for register in itertools.chain(*part.products.accumulators):
                    self.kernel.set(register, const(0.0, f"float32x{self.level.lanes}"))
                self._store(part)

    def _add(
        self, weights: PackedWeights, sums: list[Pointer], begin: Expr, count: Expr, first: Expr, tiles: Expr
    ) -> None:
        """Add `tiles` tiles from `first` on to the sums of `count` blocks of tokens from `begin` on."""
        dot = self._dot(weights)
        for tile, half, parts in weights.pieces(first, tiles):
            quads = piece_quads(self.encoding, half)
            unpack = weights.unpack(tile, quads)
            codes = [dot.codes([unpack(unit, quad) for quad in quads]) for unit in weights.rows.units]
            with self.kernel.loop(count, "block") as index:
                block = self._take(weights, sums, begin, index)
                self._add_tile(block.products, codes, tile, half, parts)
                self._store(block)

    def _add_tile(
        self, products: IntegerProducts, codes: list[list[Expr]], tile: Expr, half: int, parts: GroupParts
    ) -> None:
        """A tile's codes by a block's inputs, flushed into its accumulators, unit by unit."""
        dot, x, quads = products.dot, self.inputs.codes, piece_quads(self.encoding, half)
        assert isinstance(dot, ArmDot)
        tile_inputs, places = products.tile_inputs(tile, half), products.source.codes(tile)
        for unit, unit_codes in enumerate(codes):
            sums = dot.new_sums(TOKEN_BLOCK, 1, tile_inputs.initial)
            dot.multiply([row[0] for row in sums], unit_codes, x, places, quads)
            units = range(unit, unit + 1)
            products.flush(units, sums, tile_inputs, parts.of(units))

    def _dot(self, weights: PackedWeights) -> ArmDot:
        dot = dot_for(self.kernel, self.level, weights.form, TOKEN_BLOCK)
        assert isinstance(dot, ArmDot)
        return dot

    def _take(self, weights: PackedWeights, arrays: list[Pointer], begin: Expr, index: Expr) -> _Block:
        """Block `index` of those from `begin` on, with its sums in registers."""
        k, lanes, rows = self.kernel, self.level.lanes, self.tile.rows
        token = k.let(cast((begin + index) * TOKEN_BLOCK, "int64"), "token")
        source = Source(k, self.level, self.inputs, token, TOKEN_BLOCK)
        start = k.let(index * (ARRAY_TOKENS * rows), "start")
        places = [(arrays[m // ARRAY_TOKENS], start + m % ARRAY_TOKENS * rows) for m in range(TOKEN_BLOCK)]
        accumulators = [
            [k.register(array.load(place + u * lanes, lanes), "acc") for u in range(len(weights.rows.units))]
            for array, place in places
        ]
        products = IntegerProducts(weights, self._dot(weights), source, accumulators)
        return _Block([token + m for m in range(TOKEN_BLOCK)], products, places)

    def _store(self, block: _Block) -> None:
        """Store a block's accumulators back to their array."""
        for (array, place), registers in zip(block.places, block.products.accumulators, strict=True):
            for unit, register in enumerate(registers):
                self.kernel.store(array, place + unit * self.level.lanes, register.value)
