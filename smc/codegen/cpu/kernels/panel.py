"""Panel: 32 rows by a few tiles, unpacked once for many tokens, on the kernel's stack (x86, int8 inputs).

What is multiplied is the same for every encoding: unsigned bytes less one constant, and float32 scales. Who fills
panels and multiplies with them: many_tokens.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from smc.codegen.cpu.builder import Expr, Kernel, Pointer, const, dtype_of, intrinsic, reinterpret
from smc.codegen.cpu.isa import isa
from smc.codegen.cpu.kernels.dot import Unpack, magnitude
from smc.codegen.cpu.kernels.unpack import CodeForm, code_form, unpacked_zero
from smc.codegen.cpu.kernels.weights import GroupParts, PackedWeights, RowTile, Unit, Weights
from smc.codegen.cpu.tiles import panel_tiles
from smc.codegen.kernels.groups import piece_quads
from smc.codegen.kernels.layout import QUADS, ROW_BLOCK, TILE
from smc.ir import Encoding
from smc.targets import CpuLevel


class Panel:
    """The arrays, and how codes lie in them.

    tiles: how many it has room for. packed_form: the form of the weights that `fill` reads, not shifted. form, zero:
    the form of the panel's bytes, and which byte stands for 0 (0 if zeros are stored beside scales). Scales, offsets
    (float32 [32]), zeros and what split codes lack (int32 [32]) belong to pieces: tiles, or halves of tiles in groups
    of 16.
    """

    def __init__(self, kernel: Kernel, encoding: Encoding, level: CpuLevel) -> None:
        tiles = panel_tiles(encoding, level)
        assert tiles is not None
        self.kernel, self.encoding, self.level, self.tiles = kernel, encoding, level, tiles
        self.pieces_per_tile = 2 if encoding.scales.group == 16 else 1
        source = self.packed_form = replace(code_form(encoding, level), shift=0)
        self.folds_zeros = isa(level).folds_zeros(encoding, source.bits)
        self.form: CodeForm = source
        self.zero = unpacked_zero(encoding, level)
        if self.folds_zeros:
            self.form, self.zero = replace(source, bits=source.bits + 1), (1 << source.bits) - 1
        elif source.signed:  # AVX2, 8 bits
            self.form = replace(source, split=True)
        parts = tiles * self.pieces_per_tile * ROW_BLOCK
        self.codes = kernel.array("uint8", tiles * TILE * ROW_BLOCK, "panel")
        self.signs = kernel.array("int8", tiles * TILE * ROW_BLOCK, "panel_signs") if self.form.split else None
        self.lacking = kernel.array("int32", parts, "panel_lacking") if self.form.split else None
        self.scales = kernel.array("float32", parts, "panel_scales")
        self.offsets = kernel.array("float32", parts, "panel_offsets") if encoding.stores_minima else None
        stores_zeros = encoding.stores_zeros and not self.folds_zeros
        self.zeros = kernel.array("int32", parts, "panel_zeros") if stores_zeros else None

    def fill(self, weights: PackedWeights, begin: Expr, tiles: Expr) -> None:
        """Unpack `tiles` tiles from `begin` on, of all 32 rows."""
        k = self.kernel
        for tile, half, parts in weights.pieces(begin, tiles):
            quads = piece_quads(self.encoding, half)
            unpack = weights.unpack(tile, quads)
            piece = k.let(((tile - begin) * self.pieces_per_tile + half) * ROW_BLOCK, "piece")
            for u, unit in enumerate(weights.rows.units):
                arrays = (self.scales, parts.scales), (self.zeros, parts.zeros), (self.offsets, parts.offsets)
                for array, numbers in arrays:
                    if array is not None and numbers is not None:
                        k.store(array, piece + unit.offset, numbers[u])
                places = [self.code_place(tile - begin, quad, const(unit.offset, "int64")) for quad in quads]
                codes = [unpack(unit, quad) for quad in quads]
                if self.form.split:
                    self._store_split(places, codes, piece + unit.offset)
                    continue
                for place, code in zip(places, codes, strict=True):
                    self._store_codes(place, code, parts.zeros and parts.zeros[u])

    def _store_split(self, places: Sequence[Expr], codes: Sequence[Expr], piece: Expr) -> None:
        """A unit's codes in `places`, and what products of this piece lack: the magnitudes of negative ones."""
        assert self.signs is not None and self.lacking is not None
        k, lanes = self.kernel, self.level.lanes
        bytes_, words = f"int8x{4 * lanes}", f"int16x{2 * lanes}"
        total = const(0, words)
        for place, code in zip(places, codes, strict=True):
            sign = k.let(code >> const(7, bytes_), "sign")
            k.store(self.codes, place, reinterpret(magnitude(code), f"uint8x{4 * lanes}"))
            k.store(self.signs, place, sign)
            pairs = intrinsic(words, "llvm.x86.avx2.pmadd.ub.sw", magnitude(code) & sign, const(1, bytes_))
            total = k.let(total + pairs, "negative")
        fours = intrinsic(f"int32x{lanes}", "llvm.x86.avx2.pmadd.wd", total, const(1, words))
        k.store(self.lacking, piece, fours)

    def code_place(self, tile: Expr, quad: int, row: Expr) -> Expr:
        """The place of the codes of a quad, for rows from `row` of the block on; tile: its number in the panel."""
        return (tile * QUADS + quad) * (4 * ROW_BLOCK) + row * 4

    def _store_codes(self, place: Expr, code: Expr, zero: Expr | None) -> None:
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


class PanelWeights(Weights):
    """A row tile's weights in a panel that was filled from tile `begin` on."""

    def __init__(self, panel: Panel, rows: RowTile, begin: Expr) -> None:
        super().__init__(panel.kernel, panel.encoding, panel.level, rows)
        self.panel, self.begin = panel, begin
        self.form, self.zero = panel.form, panel.zero

    def group_parts(self, group: Expr) -> GroupParts:
        """See `Weights.group_parts`."""
        panel, place = self.panel, self.kernel.let(self._piece_of(group), "piece")
        rows = [place + self._row(unit) for unit in self.rows.units]

        def numbers(array: Pointer | None) -> list[Expr] | None:
            return [self.kernel.let(array.load(row, self.level.lanes), "part") for row in rows] if array else None

        scales = None if self.encoding.has_row_scale else panel.scales
        return GroupParts(numbers(scales), numbers(panel.zeros), numbers(panel.offsets))

    def unpack(self, tile: Expr, quads: range) -> Unpack:
        """See `Weights.unpack`."""

        def load(unit: Unit, quad: int) -> Any:
            place = self.panel.code_place(tile - self.begin, quad, self._row(unit))
            arrays = (self.panel.codes, self.panel.signs) if self.panel.signs else (self.panel.codes,)
            codes = [self.kernel.let(array.load(place, 4 * self.level.lanes), "code") for array in arrays]
            return codes if self.form.split else codes[0]

        return load

    def lacking(self, tile: Expr, quads: range) -> list[Expr] | None:
        """See `Weights.lacking`."""
        array, pieces = self.panel.lacking, self.panel.pieces_per_tile
        if array is None:
            return None
        piece = ((tile - self.begin) * pieces + quads.start * pieces // QUADS) * ROW_BLOCK
        return [self.kernel.let(array.load(piece + self._row(u), self.level.lanes), "lacking") for u in self.rows.units]

    def _piece_of(self, group: Expr) -> Expr:
        """The place of a group's scales, which are those of its first piece."""
        size = self.encoding.scales.group
        if not isinstance(size, int):
            return const(0, "int64")
        if size == 16:
            return (group - self.begin * 2) * ROW_BLOCK
        return (group * (size // TILE) - self.begin) * ROW_BLOCK

    def _row(self, unit: Unit) -> Expr:
        """A unit's first row in the panel."""
        return self.rows.offset + unit.offset
