"""Weights: the codes of a matmul, with the scales, zeros and offsets of their groups.

They are read packed (`PackedWeights`) or, unpacked, from a panel (panel.py); products use both in the same way.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from smc.codegen.cpu.builder import CACHE_LINE, Expr, Kernel, Pointer, cast, const, reinterpret
from smc.codegen.cpu.isa import isa
from smc.codegen.cpu.kernels.dot import Terms, Unpack
from smc.codegen.cpu.kernels.spans import each_tile, spans
from smc.codegen.cpu.kernels.unpack import (
    CodeForm,
    Fractions,
    InPlace,
    TilePlace,
    cell,
    code_form,
    load_floats,
    load_zeros,
    scale_place,
    tile_place,
    unpack_quad,
    unpacked_zero,
)
from smc.codegen.kernels.groups import tiles_of_scales
from smc.codegen.kernels.layout import QUADS, ROW_BLOCK, ROW_VECTOR, TILE, span_of
from smc.ir import Encoding
from smc.targets import CpuLevel


@dataclass(frozen=True)
class Unit:
    """As many rows as a register has lanes: which of a tile's row vectors, and the first row in it."""

    vector: int
    row: int

    @property
    def offset(self) -> int:
        """Its first row, counted from the row tile's."""
        return self.vector * ROW_VECTOR + self.row


@dataclass(frozen=True)
class RowTile:
    """The rows that are computed at once, of one block of 32; all int64.

    row, vector: the first row, and its row vector. first: where in that vector the tile begins. offset: where in the
    block of rows.
    """

    row: Expr
    vector: Expr
    first: Expr
    offset: Expr
    units: list[Unit]


def row_tile(kernel: Kernel, level: CpuLevel, block: Expr, offset: Expr, rows: int) -> RowTile:
    """`rows` rows from `offset` on in the block that begins with row `block`."""
    row = kernel.let(block + offset, "row")
    vector = kernel.let(row >> const(4, "int64"), "vector")
    first = const(0, "int64")
    if rows < ROW_VECTOR:
        first = kernel.let(row & const(ROW_VECTOR - 1, "int64"), "first")
    units = [Unit(r // ROW_VECTOR, r % ROW_VECTOR) for r in range(0, rows, level.lanes)]
    return RowTile(row, vector, first, offset, units)


@dataclass(frozen=True)
class GroupParts:
    """The parts of a weight group for each unit: scales float32 [lanes] (none if the whole row has one, which the
    epilogue applies), stored zeros int32 (float32 for float inputs), offsets float32."""

    scales: list[Expr] | None
    zeros: list[Expr] | None
    offsets: list[Expr] | None

    def of(self, units: range) -> GroupParts:
        """Those of some units."""
        some = slice(units.start, units.stop)
        return GroupParts(*(part and part[some] for part in (self.scales, self.zeros, self.offsets)))


class Weights(ABC):
    """The weights of a row tile.

    form, zero: the form of unpacked codes, and which code, with its shift, stands for 0 (0 if zeros are stored).
    shift_in_scales: scales undo the codes' shift, so sums of products must not.
    """

    def __init__(self, kernel: Kernel, encoding: Encoding, level: CpuLevel, rows: RowTile) -> None:
        self.kernel, self.encoding, self.level, self.rows = kernel, encoding, level, rows
        self.form: CodeForm
        self.zero = 0
        self.shift_in_scales = False

    @abstractmethod
    def group_parts(self, group: Expr) -> GroupParts:
        """The parts of a group (its number in the row, int64)."""

    @abstractmethod
    def unpack(self, tile: Expr, quads: range) -> Unpack:
        """unit, quad → the unpacked codes of a tile, of these quads."""

    def lacking(self, tile: Expr, quads: range) -> list[Expr] | None:
        """int32 [lanes] per unit: what the sums of a tile's products lack for these quads; None: nothing."""
        return None

    def pieces(self, begin: Expr, tiles: Expr) -> Iterator[tuple[Expr, int, GroupParts]]:
        """Loops over tiles; yields the tile, its half (0 where there is but one piece) and its group's parts."""
        k = self.kernel
        if self.encoding.scales.group == 16:
            with k.loop(tiles, "tile", begin=begin) as tile:
                for half in range(2):
                    yield tile, half, self.group_parts(k.let(tile * 2 + half, "group"))
            return
        with spans(k, begin, tiles, tiles_of_scales(self.encoding)[0]) as (group, first, count):
            parts = self.group_parts(group)
            with each_tile(k, first, count) as tile:
                yield tile, 0, parts


BeforeTile = Callable[[Expr], None]
"""Is called with a tile (int64) before it is multiplied."""


class PackedMatrix:
    """The packed matrix that a linear kernel is given (kernels/layout.py): pointers, and where scales and zeros lie.

    tiles, groups, super_groups: of a row; rows: padded ones of the matrix. All int64.
    """

    def __init__(
        self,
        kernel: Kernel,
        encoding: Encoding,
        level: CpuLevel,
        pointers: tuple[Pointer, Pointer, Pointer],
        columns: Expr,
        rows: Expr,
    ) -> None:
        k = self.kernel = kernel
        self.encoding, self.level = encoding, level
        self.codes, self.scales, self.zeros = pointers
        self.tiles = k.let(cast((columns + const(TILE - 1, "int32")) >> const(5, "int32"), "int64"), "tiles")
        self.groups = k.let(self._group_count(), "groups")
        self.rows = k.let(cast(rows, "int64"), "rows")
        self.super_groups = self.groups
        if size := encoding.scales.super_group:
            self.super_groups = k.let((self.groups + const(size - 1, "int64")) // const(size, "int64"), "super_groups")

    def _group_count(self) -> Expr:
        group = self.encoding.scales.group
        if self.encoding.is_float or not isinstance(group, int):
            return const(1, "int64")
        return (self.tiles * TILE + const(group - 1, "int64")) // const(group, "int64")

    def prefetch_tile(self, block: Expr, tile: Expr) -> None:
        """Prefetch a tile of the 32 rows behind `block` (int32), with the scales that lie before the next one."""
        k, line = self.kernel, const(CACHE_LINE, "int64")
        vector = (cast(block, "int64") + const(1, "int64")) * (ROW_BLOCK // ROW_VECTOR)
        begin, end = (tile_place(k, self.encoding, vector, tile + i, self.tiles).begin for i in range(2))
        with k.loop((end - begin + (line - const(1, "int64"))) // line, "line") as index:
            k.prefetch(self.codes, begin + index * line)

    def scale(self, rows: RowTile, unit: Unit, group: Expr, offset: bool = False) -> Expr:
        """float32 [lanes]: the scales, or offsets, of a unit's rows."""
        k, lanes, row = self.kernel, self.level.lanes, rows.first + unit.row
        if span_of(self.encoding):
            place = scale_place(self.encoding, rows.vector, group, self.tiles, unit.vector, part=int(offset))
            return k.let(load_floats(self.scales, place + row, lanes), "offset" if offset else "scale")
        index = cell(rows.vector, group, self.groups, unit.vector) * ROW_VECTOR + row
        size, name = self.encoding.scales.super_group, "offset" if offset else "scale"
        # Offsets follow the scales of all row vectors, and their codes those of scales.
        begin = self.rows * self.super_groups if offset else const(0, "int64")
        if size is None or (offset and not self.encoding.has_two_level_minima):
            return k.let(load_floats(self.scales, begin + index, lanes), name)
        outer = cell(rows.vector, group // const(size, "int64"), self.super_groups, unit.vector) * ROW_VECTOR + row
        codes = self.zeros.load(index + self.rows * self.groups if offset else index, lanes)
        if self.encoding.scales.signed_codes and not offset:
            codes = reinterpret(codes, f"int8x{lanes}")
        inner = cast(cast(codes, f"int32x{lanes}"), f"float32x{lanes}")
        return k.let(load_floats(self.scales, begin + outer, lanes) * inner, name)

    def stored_zero(self, rows: RowTile, unit: Unit, group: Expr, form: CodeForm) -> Expr:
        """int32 [lanes], in the form of the integer sums: with the offset and the shift of codes."""
        one, lanes = const(1, "int64"), self.level.lanes
        cells = [
            cell(rows.vector, group, self.groups, unit.vector),
            cell(rows.vector, group >> one, (self.groups + one) >> one, unit.vector),
        ]
        row = rows.first + unit.row
        if self.encoding.scales.super_group is not None:
            row = row + self.rows * self.groups  # behind the codes of the scales
        zero = load_zeros(self.encoding, self.level, self.zeros, cells, row, group)
        if offset := form.offset:
            zero = zero + const(offset, f"int32x{lanes}")
        if self.encoding.rounds_inputs and form.shift:
            zero = zero << const(form.shift, f"int32x{lanes}")
        return self.kernel.let(zero, "zero")


class PackedWeights(Weights):
    """A row tile's packed weights.

    form: the form of zeros and scales, if not that of the codes. ahead: how many bytes (int32) before its use a tile is
    prefetched; 0 or None: not. before_tile: what else is done then.
    """

    def __init__(
        self,
        matrix: PackedMatrix,
        rows: RowTile,
        form: CodeForm | None = None,
        ahead: Expr | None = None,
        before_tile: BeforeTile | None = None,
    ) -> None:
        super().__init__(matrix.kernel, matrix.encoding, matrix.level, rows)
        self.matrix, self.ahead, self._before_tile = matrix, ahead, before_tile
        encoding, level = self.encoding, self.level
        self.form = form or code_form(encoding, level)
        if not encoding.is_float and not encoding.stores_zeros:
            self.zero = unpacked_zero(encoding, level) << self.form.shift
        # x86 has no conversion with a shift. Dividing a scale by a power of two is exact.
        self.shift_in_scales = not self.form.signed and self.form.shift > 0 and not encoding.has_row_scale
        # Base 3 on x86: every unit's bytes go from tile to tile.
        self.fractions: dict[Unit, Fractions] = {}
        if encoding.is_base3 and not isa(level).signed_only:
            self.fractions = {unit: Fractions(self.kernel, level, matrix.tiles) for unit in rows.units}

    def group_parts(self, group: Expr) -> GroupParts:
        """See `Weights.group_parts`."""
        encoding, rows, zeros, scales, offsets = self.encoding, self.rows, None, None, None
        if encoding.stores_zeros:
            zeros = [self.matrix.stored_zero(rows, unit, group, self.form) for unit in rows.units]
        if not encoding.has_row_scale:
            scales = [self.matrix.scale(rows, unit, group) for unit in rows.units]
        if scales and self.shift_in_scales:
            factor = const(2.0**-self.form.shift, f"float32x{self.level.lanes}")
            scales = [self.kernel.let(scale * factor, "scale") for scale in scales]
        if encoding.stores_minima:
            offsets = [self.matrix.scale(rows, unit, group, offset=True) for unit in rows.units]
        return GroupParts(scales, zeros, offsets)

    def unpack(self, tile: Expr, quads: range) -> Unpack:
        """See `Weights.unpack`."""
        if self._before_tile is not None and quads.start == 0:
            self._before_tile(tile)
        places = self._tile_places(tile, quads)

        @functools.cache  # reading a base-3 digit moves on to the next
        def unpack(unit: Unit, quad: int) -> Expr:
            place, row, fractions = places[unit.vector], self.rows.first + unit.row, self.fractions.get(unit)
            return unpack_quad(self.kernel, self.encoding, self.level, self.matrix.codes, place, quad, row, fractions)

        return unpack

    def terms(self, tile: Expr, quads: range, form: InPlace) -> Terms:
        """unit, quad → the bytes of a tile that are multiplied in place, for these quads."""
        places = self._tile_places(tile, quads)

        def terms(unit: Unit, quad: int) -> list[Expr]:
            place, row, fractions = places[unit.vector], self.rows.first + unit.row, self.fractions.get(unit)
            return form.terms(self.matrix.codes, place, quad, row, fractions)

        return terms

    def _tile_places(self, tile: Expr, quads: range) -> list[TilePlace]:
        """Where the codes of a tile are, for each row vector. In base 3, the first of five tiles loads the bytes."""
        k, rows, matrix = self.kernel, self.rows, self.matrix
        vectors = range(rows.units[-1].vector + 1)
        places = [tile_place(k, self.encoding, rows.vector, tile, matrix.tiles, v) for v in vectors]
        if self.fractions:
            with k.when(places[0].digit == const(0, "int64")):
                for unit, fractions in self.fractions.items():
                    fractions.load(matrix.codes, places[unit.vector].begin + (rows.first + unit.row) * 4, quads)
                self.prefetch(places[0].begin)
        elif quads.start == 0:
            self.prefetch(places[0].begin)
        return places

    def prefetch(self, place: Expr) -> None:
        """Prefetch the tile that lies so far behind the one at `place`, with the scales between."""
        if self.ahead is None:
            return
        k, encoding = self.kernel, self.encoding
        lines = QUADS if encoding.is_base3 else TILE * encoding.bits // 8 * ROW_VECTOR // CACHE_LINE
        lines *= self.rows.units[-1].vector + 1
        if span := span_of(encoding):
            lines += span.scale_bytes // CACHE_LINE
        with k.when(self.ahead > const(0, "int32")):
            place = k.let(place + cast(self.ahead, "int64"), "ahead")
            for line in range(lines):
                k.prefetch(self.matrix.codes, place + line * CACHE_LINE)

    def prefetch_column(self, place: Expr) -> None:
        """The same for a column of float weights, the first of which is at `place`, in floats."""
        if self.ahead is None:
            return
        k, size = self.kernel, self.encoding.bits // 8
        with k.when(self.ahead > const(0, "int32")):
            place = k.let(place + cast(self.ahead // const(size, "int32"), "int64"), "ahead")
            for line in range(0, self.rows.units[-1].offset + self.level.lanes, CACHE_LINE // size):
                k.prefetch(self.matrix.codes, place + line)
