"""Panel: 32 rows by a few tiles, unpacked once for many tokens, on the kernel's stack (x86, int8 inputs).

A tile of a few tokens is soon multiplied, and unpacking it takes as long as that where codes are split into planes,
looked up or packed in base 3. So a kernel for many tokens cuts its rows into blocks of columns (as in Goto and van de
Geijn, Anatomy of High-Performance Matrix Multiplication, 2008): a block is unpacked into the panel, which stays in the
first cache, and then multiplied with all tokens of a chunk, whose sums wait on the stack from one block to the next.
What is multiplied is the same for every encoding: unsigned bytes less one constant, and float32 scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import tvm.tirx as tirx

from smc.codegen.kernels.builder import Expr, Kernel, Pointer, const, dtype_of, reinterpret
from smc.codegen.kernels.tiles import panel_tiles
from smc.codegen.kernels.unpack import QUADS, code_form, unpacked_zero
from smc.codegen.layout import ROW_BLOCK, TILE
from smc.ir import Encoding
from smc.targets import Level

MANY_TOKENS = 16
"""From so many tokens on unpacking into a panel pays."""

CHUNK_TOKENS = 128
"""Tokens that share a panel: their sums take 16 KiB of stack."""


class Panel:
    """The arrays, and how codes lie in them.

    form, zero: what the bytes say, and which byte stands for 0 (0 where zeros are stored beside scales).
    Scales, offsets (float32 [32]) and zeros (int32 [32]) belong to pieces: tiles, or halves of tiles in groups of 16.
    """

    def __init__(self, kernel: Kernel, encoding: Encoding, level: Level) -> None:
        tiles = panel_tiles(encoding, level)
        assert tiles is not None
        self.kernel, self.encoding, self.level, self.tiles = kernel, encoding, level, tiles
        self.pieces_per_tile = 2 if encoding.group == 16 else 1
        source = replace(code_form(encoding, level), shift=0)
        self.folds_zeros = (
            encoding.zero == "group" and source.bits < 8 and not (level.dot == "vpmaddubsw" and source.bits > 3)
        )
        self.form, self.zero = source, unpacked_zero(encoding, level)
        if self.folds_zeros:
            self.form, self.zero = replace(source, bits=source.bits + 1), (1 << source.bits) - 1
        self.first = const(0, "int64")
        parts = tiles * self.pieces_per_tile * ROW_BLOCK
        self.codes = kernel.array("uint8", tiles * TILE * ROW_BLOCK, "panel")
        self.scales = kernel.array("float32", parts, "panel_scales")
        self.offsets = kernel.array("float32", parts, "panel_offsets") if encoding.offset else None
        stores_zeros = encoding.zero == "group" and not self.folds_zeros
        self.zeros = kernel.array("int32", parts, "panel_zeros") if stores_zeros else None
        self.sums = kernel.array("float32", CHUNK_TOKENS * ROW_BLOCK, "panel_sums")

    @contextmanager
    def blocks(self, tiles: Expr) -> Iterator[tuple[Expr, Expr]]:
        """Loop over blocks of a row's tiles: yields the first tile and how many there are, and begins a panel."""
        k, most = self.kernel, const(self.tiles, "int64")
        with k.loop(k.let((tiles + most - const(1, "int64")) // most, "blocks"), "block_of_tiles") as block:
            self.first = k.let(block * most, "first")
            yield self.first, k.let(tirx.min(tiles - self.first, most), "count")

    def piece(self, tile: Expr, half: int = 0) -> Expr:
        """Where the scales of a tile, or half of one, begin."""
        return ((tile - self.first) * self.pieces_per_tile + half) * ROW_BLOCK

    def piece_of(self, group: Expr) -> Expr:
        """Where the scales of a group begin: those of its first piece."""
        size = self.encoding.group
        if not isinstance(size, int):
            return const(0, "int64")
        if size == 16:
            return (group - self.first * 2) * ROW_BLOCK
        return (group * (size // TILE) - self.first) * ROW_BLOCK

    def code_place(self, tile: Expr, quad: int, row: Expr) -> Expr:
        """Where the codes of a quad of rows from `row` of the block on lie."""
        return ((tile - self.first) * QUADS + quad) * (4 * ROW_BLOCK) + row * 4

    def store_codes(self, place: Expr, code: Expr, zero: Expr | None) -> None:
        """Unpacked codes in the encoding's form, less a stored zero (int32 [lanes]) where the panel has none."""
        dtype = dtype_of(code)
        shift = code_form(self.encoding, self.level).shift
        if shift:
            code = code >> const(shift, dtype)
        if self.folds_zeros:
            vector = dtype_of(zero)
            # The difference in each of a row's four columns.
            spread = (const(self.zero, vector) - zero) * const(0x01010101, vector)
            code = code + reinterpret(spread, dtype)
        self.kernel.store(self.codes, place, reinterpret(code, f"uint8x{4 * self.level.lanes}"))

    def load(self, array: Pointer, place: Expr) -> Expr:
        """Numbers of a unit's rows."""
        return self.kernel.let(array.load(place, self.level.lanes), "part")
