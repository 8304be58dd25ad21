"""The matmul: out[token, row] = Σ x[token, column] · weight[row, column], for any encoding on any level.

Put together from *unpack* (encoding → codes), *dot* (level → integer products) and *scale* (here: group scales, zeros,
epilogue), which don't know each other. Reduction order, the same for every tile and level: groups of columns one after
the other along a row, each group's integer dot exact, then one float32 fma a group (docs/numerics.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import tvm.tirx as tirx

from smc.codegen.kernels.activations import TOKEN_BLOCK, PerToken, Source, is_blocked
from smc.codegen.kernels.builder import (
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
    reinterpret,
    rounded_product,
)
from smc.codegen.kernels.dot import ArmDot, InPlaceDot, dot_for
from smc.codegen.kernels.panel import CHUNK_TOKENS, MANY_TOKENS, Panel
from smc.codegen.kernels.specs import ACCUMULATE, COMPACT, HAS_BIAS, has_partial_sums, sum_group
from smc.codegen.kernels.tiles import Tile, default_tile
from smc.codegen.kernels.unpack import (
    QUADS,
    Fractions,
    TilePlace,
    cell,
    code_form,
    float_codes,
    in_place,
    load_floats,
    load_zeros,
    scale_place,
    storage_dtype,
    tile_place,
    unpack_quad,
    unpacked_zero,
)
from smc.codegen.layout import ROW_BLOCK, ROW_VECTOR, TILE, span_of
from smc.ir import Encoding
from smc.targets import Level

ARRAY_FLOATS, ARRAY_TOKENS = 248, 4
"""Accumulators in an array on a kernel's stack, a little less than 1 KiB, and how many tokens of a block share one."""


def linear_kernel(name: str, encoding: Encoding, level: Level, tile: Tile | None = None, top: bool = False) -> Kernel:
    """int32_t name(x, x_scales, x_sums, codes, scales, zeros, bias, out,
                    tokens, columns, x_stride, out_stride, flags, begin, end)

    Computes the row blocks begin…end (of 32 rows) for all tokens. x: float32 [tokens, x_stride], or int8 codes with
    scales and sums (activations.py). codes, scales, zeros: the packed matrix (smc.codegen.layout; codes of two-level
    scales are before the zeros). bias: float32 [rows, padded], read if flags say so.
    out: float32 [tokens, out_stride], or if flags say so [tokens, rows of the blocks begin…end]; padding rows come out
    as 0 (plus bias).

    top: the result is not written but compared, a row i with what the lane i % 16 has in out [tokens, 32]: the largest
    results up to now, float32 [16], and their rows, int32 [16], the lower one among equals. out_stride: how many rows
    count; those behind are padding.
    """
    return _Linear(name, encoding, level, tile or default_tile(encoding, level), top).build()


@dataclass(frozen=True)
class _Unit:
    """As many rows as a register has lanes: which of a pass's row vectors, and the first row in it."""

    vector: int
    row: int


@dataclass(frozen=True)
class _GroupParts:
    """What a weight group brings for each unit: scales float32 [lanes] (none where the whole row has one, which the
    epilogue applies), stored zeros int32 (float32 for float inputs), offsets float32."""

    scales: list[Expr] | None
    zeros: list[Expr] | None
    offsets: list[Expr] | None

    def of(self, units: range) -> _GroupParts:
        """Those of some units."""
        some = slice(units.start, units.stop)
        return _GroupParts(*(part and part[some] for part in (self.scales, self.zeros, self.offsets)))


class _Linear:
    def __init__(self, name: str, encoding: Encoding, level: Level, tile: Tile, top: bool) -> None:
        self.encoding, self.level, self.tile, self.top = encoding, level, tile, top
        self.integer = encoding.activation == "i8"
        self.form = code_form(encoding, level)
        # One scale a row multiplies the finished sum; but offsets, which it must not touch, are in the sum.
        self.row_scale = not encoding.is_float and not isinstance(encoding.group, int) and not encoding.offset
        # x86 has no conversion with a shift; a power of two changes no scale's digits.
        self.shift_in_scales = level.family == "x86" and self.form.shift > 0 and not self.row_scale
        self.fractions: dict[_Unit, Fractions] = {}
        self.panel: Panel | None = None
        k = self.k = Kernel(name, matmul=True)
        self.x = k.pointer("x", "int32" if self.integer else "float32")
        self.x_scales, self.x_sums = k.pointer("x_scales", "float32"), k.pointer("x_sums", "int32")
        self.codes = k.pointer("codes", storage_dtype(encoding.storage) if encoding.is_float else "uint8")
        self.scales = k.pointer("scales", storage_dtype(encoding.scale_dtype))
        self.zeros, self.bias, self.out = (
            k.pointer("zeros", "uint8"),
            k.pointer("bias", "float32"),
            k.pointer("out", "float32"),
        )
        self.tokens, self.columns = k.scalar("tokens"), k.scalar("columns")
        self.x_stride, self.out_stride = k.scalar("x_stride"), k.scalar("out_stride")
        self.flags, self.begin, self.end = k.scalar("flags"), k.scalar("begin"), k.scalar("end")

    def build(self) -> Kernel:
        k = self.k
        self.tiles = k.let(cast((self.columns + const(TILE - 1, "int32")) >> const(5, "int32"), "int64"), "tiles")
        self.groups = k.let(self._group_count(), "groups")
        # A row of the result is as long as the matrix has padded rows.
        rows = (self.out_stride + (ROW_BLOCK - 1)) // ROW_BLOCK * ROW_BLOCK if self.top else self.out_stride
        self.rows = k.let(cast(rows, "int64"), "rows")
        self.super_groups = self.groups
        if size := self.encoding.super_group:
            self.super_groups = k.let((self.groups + const(size - 1, "int64")) // const(size, "int64"), "super_groups")
        compact = (self.flags & const(COMPACT, "int32")) != const(0, "int32")
        blocks, zero = cast(self.end - self.begin, "int64"), const(0, "int64")
        self.out_row = k.let(tirx.Select(compact, blocks * ROW_BLOCK, self.rows), "out_row")
        self.out_first = k.let(tirx.Select(compact, cast(self.begin, "int64") * ROW_BLOCK, zero), "out_first")
        with k.loop(self.end - self.begin, "block", begin=self.begin) as block:
            first = k.let(cast(block, "int64") * ROW_BLOCK, "first")
            done = self._many_tokens(first) if self.tile.panel else const(0, "int32")
            for step in self._steps():
                count = k.let((self.tokens - done) // const(step, "int32"), "count")
                if step == TOKEN_BLOCK and self._has_stationary_codes():
                    self._token_blocks(first, count)
                else:
                    rows = self.tile.rows if step > 1 else ROW_BLOCK
                    with k.loop(const(ROW_BLOCK // rows, "int64"), "pass") as index, k.loop(count, "token_tile") as t:
                        self._body(first + index * rows, rows, k.let(cast(done + t * step, "int64"), "token"), step)
                done = k.let(done + count * step, "done")
        return k

    def _steps(self) -> list[int]:
        """How many tokens at once, then with those left over; interleaved blocks of tokens must not be split."""
        step = self.tile.tokens
        if is_blocked(self.level):
            return sorted({TOKEN_BLOCK if self.integer else step, 1}, reverse=True)
        # A third of a tile: one token alone takes almost as long as two.
        return sorted({step, max(1, step // 3), 1}, reverse=True)

    def _has_stationary_codes(self) -> bool:
        """Whether tiles are unpacked once for many blocks of tokens: then each tile's sums must leave at once."""
        return self.integer and is_blocked(self.level) and self._flushes_tiles()

    def _group_count(self) -> Expr:
        group = self.encoding.group
        if self.encoding.is_float or not isinstance(group, int):
            return const(1, "int64")
        return (self.tiles * TILE + const(group - 1, "int64")) // const(group, "int64")

    # ---- one tile: `count` tokens from `token` on, `rows` rows from `row` on

    def _body(self, row: Expr, rows: int, token: Expr, count: int) -> None:
        k = self.k
        self._take_rows(row, rows)
        self.token_rows = [(token + m) for m in range(count)]
        zero = const(0.0, f"float32x{self.level.lanes}")
        self.accumulators = [[k.register(zero, "acc") for _ in self.units] for _ in range(count)]
        self._begin_fractions()
        if count > 1 and not self.top and not is_blocked(self.level):
            self._fetch_results()
        if self.encoding.is_float:
            self._plain_floats()
        elif self.integer:
            place = in_place(self.encoding, self.level, not self._flushes_tiles()) if count == 1 else None
            self.dot = (
                InPlaceDot(k, self.level, self.form, place) if place else dot_for(k, self.level, self.form, count)
            )
            self.source = Source(k, self.level, token, count, self.x_stride)
            self._integers(const(0, "int64"), self.tiles)
        else:
            self._float_inputs()
        self._epilogue()

    def _begin_fractions(self) -> None:
        """Base 3 on x86: every unit's bytes go from tile to tile."""
        if self.encoding.storage == "base3" and self.level.family == "x86":
            self.fractions = {unit: Fractions(self.k, self.level, self.tiles) for unit in self.units}

    def _fetch_results(self) -> None:
        """Ask for where the results go: other threads wrote there last, and a residual is read."""
        for unit in self.units:
            if (unit.vector * ROW_VECTOR + unit.row) % ROW_VECTOR == 0:
                for row in self.token_rows:
                    first = self.row + unit.vector * ROW_VECTOR - self.out_first
                    self.k.prefetch(self.out, row * self.out_row + first)

    def _take_rows(self, row: Expr, rows: int) -> None:
        """Work on `rows` rows from `row` on."""
        k = self.k
        self.row = k.let(row, "row")
        self.vector = k.let(self.row >> const(4, "int64"), "vector")
        # Where in its row vector a pass of fewer rows begins.
        self.first = const(0, "int64")
        if rows < ROW_VECTOR:
            self.first = k.let(self.row & const(ROW_VECTOR - 1, "int64"), "first")
        self.units = [_Unit(r // ROW_VECTOR, r % ROW_VECTOR) for r in range(0, rows, self.level.lanes)]

    def _plain_floats(self) -> None:
        k, lanes = self.k, self.level.lanes
        width = k.let(cast(self.columns, "int64"), "width")
        inputs = [k.let(row * cast(self.x_stride, "int64"), "row") for row in self.token_rows]
        with k.loop(width, "column") as column:
            place = k.let(cell(self.vector, column, width) * ROW_VECTOR + self.first, "place")
            weights = [
                k.let(load_floats(self.codes, place + (u.vector * ROW_VECTOR + u.row), lanes), "w") for u in self.units
            ]
            for m, start in enumerate(inputs):
                x = k.let(self.x.load(start + column), "x")
                for accumulator, weight in zip(self.accumulators[m], weights, strict=True):
                    k.set(accumulator, fma(weight, broadcast(x, lanes), accumulator.value))

    # ---- int8 inputs

    def _integers(self, begin: Expr, tiles: Expr) -> None:
        """`tiles` tiles from `begin` on: an integer sum is flushed where either scale changes, to a sum of its own
        where input groups are larger than the weights'."""
        _, inputs = self._spans_of_scales()
        if not has_partial_sums(self.encoding):
            self._weight_groups(begin, tiles, inputs)
            return
        totals, zero = self.accumulators, const(0.0, f"float32x{self.level.lanes}")
        with self._spans(begin, tiles, inputs) as (_, first, count):
            self.accumulators = [[self.k.register(zero, "part") for _ in row] for row in totals]
            self._weight_groups(first, count, None)
            self._add_parts(totals, self.accumulators, first)
        self.accumulators = totals

    def _weight_groups(self, begin: Expr, tiles: Expr, inputs: int | None) -> None:
        """The weight groups of `tiles` tiles from `begin` on; inputs: tiles of an input scale, None if one has all."""
        if self._flushes_tiles():
            for tile, half, parts in self._flushed_tiles(begin, tiles):
                self._finish_tile(tile, half, parts)
            return
        weights, _ = self._spans_of_scales()
        with self._spans(begin, tiles, weights) as (group, first, count):
            shorter = inputs if weights is None or (inputs is not None and inputs < weights) else None
            with self._spans(first, count, shorter) as (_, tile, some):
                self._add_span(tile, some, self._group_parts(group))

    def _add_parts(self, totals: list[list[Register]], parts: list[list[Register]], tile: Expr) -> None:
        """total += part * input scale, of the inputs' group that has this tile."""
        scales = self.source.per_token(self.x_scales, tile)
        for m, (registers, row) in enumerate(zip(totals, parts, strict=True)):
            scale = scales.spread(self.dot.tokens_of(m))
            for total, part in zip(registers, row, strict=True):
                self.k.set(total, fma(part.value, scale, total.value))

    def _add_span(self, first: Expr, count: Expr, parts: _GroupParts) -> None:
        """`count` tiles from `first` on, flushed at once: one scale of the weights, one of the inputs."""
        k = self.k
        totals = [k.register(zero, "total") for zero in self.source.zeros()]
        sums = self.dot.new_sums(len(self.token_rows), len(self.units))
        with k.loop(count, "tile", begin=first) as tile:
            for total, amount in zip(totals, self._input_sums(tile).values, strict=True):
                k.set(total, total.value + amount)
            self._add_tile(sums, range(len(self.units)), tile, range(QUADS))
            if self.encoding.storage == "base3":  # 256 times a whole row may be more than an int32
                self.dot.collect(sums)
        self.dot.collect(sums)
        finished = PerToken([total.value for total in totals])
        units = range(len(self.units))
        self._flush(units, sums, finished, self._input_scales(first), parts, self._correction())

    def _spans_of_scales(self) -> tuple[int | None, int | None]:
        """For how many tiles a scale of the weights and one of the inputs hold; None: for the whole row."""
        sizes = self.encoding.group, self.encoding.activation_group if self.integer else None
        weights, inputs = (-(-size // TILE) if isinstance(size, int) else None for size in sizes)
        return weights, inputs

    def _flushes_tiles(self) -> bool:
        """Whether the sums of every tile, or half of one, leave at once: no scale holds for more columns."""
        return 1 in self._spans_of_scales()

    def _flushed_tiles(self, begin: Expr, tiles: Expr) -> Iterator[tuple[Expr, int, _GroupParts]]:
        """Loops over tiles; yields the tile, its half (0 where there is but one piece) and the group's parts."""
        k = self.k
        if self.encoding.group == 16:
            with k.loop(tiles, "tile", begin=begin) as tile:
                for half in range(2):
                    yield tile, half, self._group_parts(k.let(tile * 2 + half, "group"))
            return
        with self._spans(begin, tiles, self._spans_of_scales()[0]) as (group, first, count):
            parts = self._group_parts(group)
            with self._each_tile(first, count) as tile:
                yield tile, 0, parts

    def _quads(self, half: int) -> range:
        """The quads of a piece that is flushed at once."""
        size = QUADS // 2 if self.encoding.group == 16 else QUADS
        return range(half * size, (half + 1) * size)

    def _finish_tile(self, tile: Expr, half: int, parts: _GroupParts) -> None:
        """A tile, or half of one, whose sums are flushed at once: all units together, or one after the other."""
        totals, initial, x_scales = self._tile_inputs(tile, half)
        step = len(self.units)
        if isinstance(self.dot, ArmDot):
            step = min(step, self.dot.units_at_once(len(self.token_rows)))
        for first in range(0, len(self.units), step):
            units = range(first, first + step)
            sums, some = self.dot.new_sums(len(self.token_rows), step, initial), parts.of(units)
            if some.zeros is not None and self.level.family == "x86":
                self._begin_with_zeros(sums, some.zeros, totals)
                some = replace(some, zeros=None)
            self._add_tile(sums, units, tile, self._quads(half))
            self.dot.collect(sums)
            self._flush(units, sums, totals, x_scales, some)

    def _begin_with_zeros(self, sums: list[list[Register]], zeros: list[Expr], totals: PerToken) -> None:
        """sum = - zero * total: both fit int16, of which x86 multiplies pairs sooner than it does int32."""
        k, vector = self.k, f"int32x{self.level.lanes}"
        name = "llvm.x86.avx512.pmaddw.d.512" if self.level.lanes == 16 else "llvm.x86.avx2.pmadd.wd"
        words = f"int16x{2 * self.level.lanes}"
        for registers, total in zip(sums, totals.values, strict=True):
            # The upper half of a pair is 0.
            amount = broadcast(k.let((const(0, "int32") - total) & const(0xFFFF, "int32"), "amount"), self.level.lanes)
            for register, zero in zip(registers, zeros, strict=True):
                k.set(register, intrinsic(vector, name, reinterpret(zero, words), reinterpret(amount, words)))

    def _add_tile(self, sums: list[list[Register]], units: range, tile: Expr, quads: range) -> None:
        """Add the quads of a tile for some units."""
        some, inputs = self.units[units.start : units.stop], self.source.codes(tile)
        if isinstance(self.dot, InPlaceDot):
            self.dot.add_terms(some, self._terms(tile, quads), self.x, inputs[0], quads)
        else:
            self.dot.add(sums, some, self._unpack(tile, quads), self.x, inputs, quads)

    def _tile_inputs(self, tile: Expr, half: int) -> tuple[PerToken, PerToken | None, PerToken | None]:
        """Of every token: the sum of its codes, what integer sums begin with (None: 0), its scale (None: later)."""
        correction, totals = self._correction(), self._input_sums(tile, half)
        initial = self._times(totals, -correction) if correction else None
        return totals, initial, self._input_scales(tile)

    def _input_scales(self, tile: Expr) -> PerToken | None:
        """Of every token: the scale of a tile's inputs; None where it is applied later, to a larger sum."""
        if self.encoding.activation_group == "token" or has_partial_sums(self.encoding):
            return None
        return self.source.per_token(self.x_scales, tile)

    # ---- int8 inputs, many tokens on x86: tiles are unpacked once for all of them (panel.py)

    def _many_tokens(self, first: Expr) -> Expr:
        """If there are enough tokens: most of them by the 32 rows from `first` on. Returns how many (int32)."""
        k, step = self.k, self.tile.tokens
        enough = self.tokens >= const(MANY_TOKENS, "int32")
        count = k.let(tirx.Select(enough, self.tokens // const(step, "int32"), const(0, "int32")), "count")
        panel, most, form, shifted = (
            Panel(k, self.encoding, self.level),
            CHUNK_TOKENS // step,
            self.form,
            self.shift_in_scales,
        )
        zero, lanes = const(0.0, f"float32x{self.level.lanes}"), self.level.lanes
        self.shift_in_scales = False
        with k.loop((count + const(most - 1, "int32")) // const(most, "int32"), "chunk") as chunk:
            begin = k.let(chunk * most, "begin")
            some = k.let(tirx.min(count - begin, const(most, "int32")), "some")
            with k.loop(cast(some, "int64") * (step * ROW_BLOCK // lanes), "clear") as place:
                k.store(panel.sums, place * lanes, zero)
            self._take_rows(first, ROW_BLOCK)
            self._begin_fractions()
            with panel.blocks(self.tiles) as (tile, tiles):
                self.form = replace(form, shift=0)
                self._take_rows(first, ROW_BLOCK)
                self._fill(panel, tile, tiles)
                self.panel, self.form = panel, panel.form
                for place in self._panel_passes(panel, first, begin, some):
                    self._integers(tile, tiles)
                    for m, registers in enumerate(self.accumulators):
                        for u, register in enumerate(registers):
                            k.store(panel.sums, place + (m * ROW_BLOCK + u * lanes), register.value)
                self.panel = None
            for _ in self._panel_passes(panel, first, begin, some):
                self._epilogue()
        self.form, self.shift_in_scales = form, shifted
        return k.let(count * step, "done")

    def _fill(self, panel: Panel, begin: Expr, tiles: Expr) -> None:
        """Unpack `tiles` tiles from `begin` on."""
        k = self.k
        for tile, half, parts in self._flushed_tiles(begin, tiles):
            unpack, piece = self._unpack(tile, self._quads(half)), k.let(panel.piece(tile, half), "piece")
            for u, unit in enumerate(self.units):
                row = unit.vector * ROW_VECTOR + unit.row
                arrays = (panel.scales, parts.scales), (panel.zeros, parts.zeros), (panel.offsets, parts.offsets)
                for array, numbers in arrays:
                    if array is not None and numbers is not None:
                        k.store(array, piece + row, numbers[u])
                for quad in self._quads(half):
                    place = panel.code_place(tile, quad, const(row, "int64"))
                    panel.store_codes(place, unpack(unit, quad), parts.zeros and parts.zeros[u])

    def _panel_passes(self, panel: Panel, first: Expr, begin: Expr, some: Expr) -> Iterator[Expr]:
        """Loops over `some` tiles of tokens from `begin` on and passes of rows; yields where their sums are."""
        k, step, rows, lanes = self.k, self.tile.tokens, self.tile.rows, self.level.lanes
        with k.loop(some, "token_tile") as t, k.loop(const(ROW_BLOCK // rows, "int64"), "pass") as index:
            self.panel_row = k.let(index * rows, "row")
            self._take_rows(first + self.panel_row, rows)
            token = k.let(cast((begin + t) * step, "int64"), "token")
            self.token_rows = [token + m for m in range(step)]
            place = k.let(cast(t, "int64") * (step * ROW_BLOCK) + self.panel_row, "place")
            self.accumulators = [
                [
                    k.register(panel.sums.load(place + (m * ROW_BLOCK + u * lanes), lanes), "acc")
                    for u in range(len(self.units))
                ]
                for m in range(step)
            ]
            self.dot = dot_for(k, self.level, panel.form, step)
            self.source = Source(k, self.level, token, step, self.x_stride)
            yield place

    def _panel_row(self, unit: _Unit) -> Expr:
        """A unit's first row in the panel."""
        return self.panel_row + (unit.vector * ROW_VECTOR + unit.row)

    # ---- int8 inputs, many blocks of tokens: a tile's codes stay in registers, the accumulators in the first cache

    def _token_blocks(self, first: Expr, blocks: Expr) -> None:
        """The step's blocks of 8 tokens, some of them at a time, by the 32 rows from `first` on."""
        k, rows = self.k, self.tile.rows
        most = min(ARRAY_FLOATS // (ARRAY_TOKENS * rows), self.tile.tokens // TOKEN_BLOCK)
        chunks = k.let((blocks + const(most - 1, "int32")) // const(most, "int32"), "chunks")
        with k.loop(const(ROW_BLOCK // rows, "int64"), "pass") as index, k.loop(chunks, "chunk") as chunk:
            self._take_rows(first + index * rows, rows)
            begin = k.let(chunk * most, "begin")
            count = k.let(tirx.min(blocks - begin, const(most, "int32")), "count")
            sums = self._new_block_sums(most)
            self._clear(sums, count)
            self.dot = dot_for(k, self.level, self.form, TOKEN_BLOCK)
            zero, (_, inputs) = const(0, "int64"), self._spans_of_scales()
            if has_partial_sums(self.encoding):
                parts = self._new_block_sums(most)
                with self._spans(zero, self.tiles, inputs) as (_, tile, tiles):
                    self._clear(parts, count)
                    self._multiply_blocks(parts, begin, count, tile, tiles)
                    with k.loop(count, "block") as block:
                        self._take_block(parts, begin, block)
                        registers = self.accumulators
                        places = self._take_block(sums, begin, block)
                        self._add_parts(self.accumulators, registers, tile)
                        self._store_block(places)
            else:
                self._multiply_blocks(sums, begin, count, zero, self.tiles)
            with k.loop(count, "block") as block:
                self._take_block(sums, begin, block)
                self._epilogue()

    def _new_block_sums(self, blocks: int) -> list[Pointer]:
        """Arrays for the sums of so many blocks of tokens."""
        size = blocks * ARRAY_TOKENS * self.tile.rows
        return [self.k.array("float32", size, "sums") for _ in range(TOKEN_BLOCK // ARRAY_TOKENS)]

    def _clear(self, sums: list[Pointer], blocks: Expr) -> None:
        """All sums of so many blocks = 0."""
        lanes = self.level.lanes
        with self.k.loop(blocks * (ARRAY_TOKENS * self.tile.rows // lanes), "clear") as place:
            for array in sums:
                self.k.store(array, place * lanes, const(0.0, f"float32x{lanes}"))

    def _multiply_blocks(self, sums: list[Pointer], begin: Expr, count: Expr, first: Expr, tiles: Expr) -> None:
        """Add `tiles` tiles from `first` on to the sums of `count` blocks of tokens from `begin` on."""
        k, dot = self.k, self.dot
        assert isinstance(dot, ArmDot)
        for tile, half, parts in self._flushed_tiles(first, tiles):
            unpack = self._unpack(tile, self._quads(half))
            codes = [dot.codes([unpack(unit, quad) for quad in self._quads(half)]) for unit in self.units]
            with k.loop(count, "block") as block:
                places = self._take_block(sums, begin, block)
                self._add_to_block(codes, tile, half, parts)
                self._store_block(places)

    def _store_block(self, places: list[tuple[Pointer, Expr]]) -> None:
        """The accumulators back to where `_take_block` has found them."""
        for (array, place), registers in zip(places, self.accumulators, strict=True):
            for unit, register in enumerate(registers):
                self.k.store(array, place + unit * self.level.lanes, register.value)

    def _take_block(self, arrays: list[Pointer], begin: Expr, block: Expr) -> list[tuple[Pointer, Expr]]:
        """Work on one block of tokens, its accumulators loaded; returns where each token's are."""
        k, lanes, rows = self.k, self.level.lanes, self.tile.rows
        token = k.let(cast((begin + block) * TOKEN_BLOCK, "int64"), "token")
        self.token_rows = [token + m for m in range(TOKEN_BLOCK)]
        self.source = Source(k, self.level, token, TOKEN_BLOCK, self.x_stride)
        start = k.let(block * (ARRAY_TOKENS * rows), "start")
        places = [(arrays[m // ARRAY_TOKENS], start + m % ARRAY_TOKENS * rows) for m in range(TOKEN_BLOCK)]
        self.accumulators = [
            [k.register(array.load(place + u * lanes, lanes), "acc") for u in range(len(self.units))]
            for array, place in places
        ]
        return places

    def _add_to_block(self, codes: list[list[Expr]], tile: Expr, half: int, parts: _GroupParts) -> None:
        """A tile's codes by the block's inputs, flushed into its accumulators, unit by unit."""
        assert isinstance(self.dot, ArmDot)
        (totals, initial, x_scales), inputs = self._tile_inputs(tile, half), self.source.codes(tile)
        for unit, unit_codes in enumerate(codes):
            sums = self.dot.new_sums(TOKEN_BLOCK, 1, initial)
            self.dot.multiply([row[0] for row in sums], unit_codes, self.x, inputs, self._quads(half))
            units = range(unit, unit + 1)
            self._flush(units, sums, totals, x_scales, parts.of(units))

    @contextmanager
    def _spans(self, begin: Expr, tiles: Expr, size: int | None) -> Iterator[tuple[Expr, Expr, Expr]]:
        """Loop over spans of `size` tiles (None: one span): yields its number in the row, its first tile and how many
        it has."""
        k = self.k
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
    def _each_tile(self, first: Expr, count: Expr) -> Iterator[Expr]:
        """Loop over tiles; a single one needs no loop."""
        if isinstance(count, tirx.IntImm):
            yield first
        else:
            with self.k.loop(count, "tile", begin=first) as tile:
                yield tile

    def _correction(self) -> int:
        """What every sum has too much, in multiples of its inputs' sum: a constant zero, in the codes' form."""
        if self.panel is not None:
            return self.panel.zero
        if self.encoding.zero == "group":
            return 0
        return unpacked_zero(self.encoding, self.level) << self.form.shift

    def _input_sums(self, tile: Expr, half: int = 0) -> PerToken:
        """int32: the sum of every token's codes in a tile, or half of one."""
        per_tile = TILE // sum_group(self.encoding)
        return self.source.per_token(self.x_sums, tile * per_tile + half, per_tile)

    def _times(self, numbers: PerToken, factor: int) -> PerToken:
        """Integers by a constant."""
        return PerToken([self.k.let(v * const(factor, dtype_of(v)), "product") for v in numbers.values])

    def _unpack(self, tile: Expr, quads: range) -> Callable[[_Unit, int], Expr]:
        """unit, quad → the unpacked codes of a tile, of these quads."""
        if (panel := self.panel) is not None:
            return lambda unit, quad: self.k.let(
                panel.codes.load(panel.code_place(tile, quad, self._panel_row(unit)), 4 * self.level.lanes), "code"
            )
        places = self._tile_places(tile, quads)

        @functools.cache  # taking a digit of base 3 moves on to the next
        def unpack(unit: _Unit, quad: int) -> Expr:
            place, row, fractions = places[unit.vector], self.first + unit.row, self.fractions.get(unit)
            return unpack_quad(self.k, self.encoding, self.level, self.codes, place, quad, row, fractions)

        return unpack

    def _terms(self, tile: Expr, quads: range) -> Callable[[_Unit, int], list[Expr]]:
        """As `_unpack`, but the bytes that are multiplied in place."""
        assert isinstance(self.dot, InPlaceDot)
        places, form = self._tile_places(tile, quads), self.dot.place

        def terms(unit: _Unit, quad: int) -> list[Expr]:
            place, row, fractions = places[unit.vector], self.first + unit.row, self.fractions.get(unit)
            return form.terms(self.codes, place, quad, row, fractions)

        return terms

    def _tile_places(self, tile: Expr, quads: range) -> list[TilePlace]:
        """Where the codes of a tile are, for each row vector of the pass; it takes the bytes where five tiles begin."""
        vectors = range(self.units[-1].vector + 1)
        places = [tile_place(self.k, self.encoding, self.vector, tile, self.tiles, v) for v in vectors]
        if self.fractions:
            with self.k.when(places[0].digit == const(0, "int64")):
                for unit, fractions in self.fractions.items():
                    fractions.load(self.codes, places[unit.vector].begin + (self.first + unit.row) * 4, quads)
        return places

    def _flush(
        self,
        units: range,
        sums: list[list[Register]],
        totals: PerToken,
        x_scales: PerToken | None,
        parts: _GroupParts,
        correction: int = 0,
    ) -> None:
        """accumulator += (dot - zero * total) * weight scale * input scale; a row's own scale comes in the epilogue."""
        k, form = self.k, self.dot
        excess = self._times(totals, correction) if correction else None
        amounts = None
        if parts.offsets is not None:
            amounts = PerToken([cast(v, dtype_of(v).replace("int32", "float32")) for v in totals.values])
            if x_scales is not None:
                pairs = zip(amounts.values, x_scales.values, strict=True)
                amounts = PerToken([k.let(amount * scale, "amount") for amount, scale in pairs])
        for m, registers in enumerate(sums):
            lanes = form.tokens_of(m)
            for u, (unit, register) in enumerate(zip(units, registers, strict=True)):
                accumulator, dot = self.accumulators[m][unit], register.value
                if excess is not None:
                    dot = dot - excess.spread(lanes)
                if parts.zeros is not None:
                    dot = dot - form.spread_rows(parts.zeros[u], m) * totals.spread(lanes)
                factor = form.spread_rows(parts.scales[u], m) if parts.scales is not None else None
                if x_scales is not None:
                    spread = x_scales.spread(lanes)
                    factor = spread if factor is None else factor * spread
                old = accumulator.value
                value = cast(dot, dtype_of(old)) if self.shift_in_scales else form.to_float(dot)
                k.set(accumulator, value + old if factor is None else fma(value, factor, old))
                if parts.offsets is not None and amounts is not None:
                    offset = form.spread_rows(parts.offsets[u], m)
                    k.set(accumulator, fma(offset, amounts.spread(lanes), accumulator.value))

    # ---- scales and zeros

    def _group_parts(self, group: Expr) -> _GroupParts:
        encoding, zeros = self.encoding, None
        if (panel := self.panel) is not None:
            place = self.k.let(panel.piece_of(group), "piece")
            rows = [place + self._panel_row(unit) for unit in self.units]
            arrays = None if self.row_scale else panel.scales, panel.zeros, panel.offsets
            return _GroupParts(*([panel.load(a, row) for row in rows] if a else None for a in arrays))
        if encoding.zero == "group":
            zeros = [self._stored_zero(unit, group) for unit in self.units]
        scales = None if self.row_scale else [self._scale(unit, group) for unit in self.units]
        if scales and self.shift_in_scales:
            factor = const(2.0**-self.form.shift, f"float32x{self.level.lanes}")
            scales = [self.k.let(scale * factor, "scale") for scale in scales]
        return _GroupParts(
            scales,
            zeros,
            [self._scale(unit, group, offset=True) for unit in self.units] if encoding.offset else None,
        )

    def _scale(self, unit: _Unit, group: Expr, offset: bool = False) -> Expr:
        k, lanes, row = self.k, self.level.lanes, self.first + unit.row
        if span_of(self.encoding):
            place = scale_place(self.encoding, self.vector, group, self.tiles, unit.vector, part=int(offset))
            return k.let(load_floats(self.scales, place + row, lanes), "offset" if offset else "scale")
        index = cell(self.vector, group, self.groups, unit.vector) * ROW_VECTOR + row
        size = self.encoding.super_group
        if offset:
            # Offsets follow the scales of all row vectors.
            return k.let(load_floats(self.scales, index + self.rows * self.super_groups, lanes), "offset")
        if size is None:
            return k.let(load_floats(self.scales, index, lanes), "scale")
        outer = cell(self.vector, group // const(size, "int64"), self.super_groups, unit.vector) * ROW_VECTOR + row
        inner = cast(cast(self.zeros.load(index, lanes), f"int32x{lanes}"), f"float32x{lanes}")
        return k.let(load_floats(self.scales, outer, lanes) * inner, "scale")

    def _stored_zero(self, unit: _Unit, group: Expr) -> Expr:
        """int32 [lanes], in the form of the integer sums: with the offset that codes have, shifted as they are."""
        one, lanes = const(1, "int64"), self.level.lanes
        cells = [
            cell(self.vector, group, self.groups, unit.vector),
            cell(self.vector, group >> one, (self.groups + one) >> one, unit.vector),
        ]
        rows = self.first + unit.row
        if self.encoding.super_group is not None:
            rows = rows + self.rows * self.groups  # behind the codes of the scales
        zero = load_zeros(self.encoding, self.level, self.zeros, cells, rows, group)
        if offset := self.form.offset:
            zero = zero + const(offset, f"int32x{lanes}")
        if self.integer and self.form.shift:
            zero = zero << const(self.form.shift, f"int32x{lanes}")
        return self.k.let(zero, "zero")

    # ---- float inputs, quantized weights

    def _float_inputs(self) -> None:
        k = self.k
        if self.encoding.group == 16:
            with k.loop(self.tiles, "tile") as tile:
                for half in range(2):
                    parts, partial = self._group_parts(k.let(tile * 2 + half, "group")), self._new_partial()
                    self._add_float_tile(tile, range(half * 4, half * 4 + 4), partial, parts)
                    self._flush_floats(partial, parts)
            return
        with self._spans(const(0, "int64"), self.tiles, self._spans_of_scales()[0]) as (group, first, count):
            parts, partial = self._group_parts(group), self._new_partial()
            with self._each_tile(first, count) as tile:
                self._add_float_tile(tile, range(QUADS), partial, parts)
            self._flush_floats(partial, parts)

    def _new_partial(self) -> list[tuple[list[Register], Register]]:
        """For every token: a float32 sum a unit, and the sum of its inputs."""
        k, zero = self.k, const(0.0, f"float32x{self.level.lanes}")
        return [
            ([k.register(zero, "part") for _ in self.units], k.register(const(0.0, "float32"), "sum"))
            for _ in self.token_rows
        ]

    def _add_float_tile(
        self, tile: Expr, quads: range, partial: list[tuple[list[Register], Register]], parts: _GroupParts
    ) -> None:
        k, level, encoding, lanes = self.k, self.level, self.encoding, self.level.lanes
        unpack = self._unpack(tile, quads)
        inputs = [k.let(row * cast(self.x_stride, "int64") + tile * TILE, "input") for row in self.token_rows]
        zeros = [k.let(cast(zero, f"float32x{lanes}"), "zero") for zero in parts.zeros or []]
        for quad in quads:
            codes = [unpack(unit, quad) for unit in self.units]
            for column in range(4):
                values = [float_codes(k, encoding, level, code, column) for code in codes]
                if zeros:
                    values = [k.let(value - zero) for value, zero in zip(values, zeros, strict=True)]
                for m, start in enumerate(inputs):
                    x = k.let(self.x.load(start + (quad * 4 + column)), "x")
                    if encoding.offset:
                        k.set(partial[m][1], partial[m][1].value + x)
                    for u, value in enumerate(values):
                        k.set(partial[m][0][u], fma(value, broadcast(x, lanes), partial[m][0][u].value))

    def _flush_floats(self, partial: list[tuple[list[Register], Register]], parts: _GroupParts) -> None:
        k, lanes = self.k, self.level.lanes
        for m, (registers, total) in enumerate(partial):
            for u, part in enumerate(registers):
                accumulator = self.accumulators[m][u]
                scaled = part.value + accumulator.value
                k.set(accumulator, fma(part.value, parts.scales[u], accumulator.value) if parts.scales else scaled)
                if parts.offsets is not None:
                    k.set(accumulator, fma(parts.offsets[u], broadcast(total.value, lanes), accumulator.value))

    # ---- epilogue

    def _epilogue(self) -> None:
        k, lanes = self.k, self.level.lanes
        token_scale = self.integer and self.encoding.activation_group == "token"
        for u, unit in enumerate(self.units):
            place = k.let(self.row + (unit.vector * ROW_VECTOR + unit.row), "row")
            to = k.let(place - self.out_first, "to")
            scale = self._scale(unit, const(0, "int64")) if self.row_scale else None
            sums = [accumulators[u].value for accumulators in self.accumulators]
            results = [k.register(v, "result") for v in (self.dot.finish(sums) if self.integer else sums)]
            for result, row in zip(results, self.token_rows, strict=True):
                if scale is not None:
                    k.set(result, rounded_product(result.value, scale))
                if token_scale:
                    spread = broadcast(self.x_scales.load(row), lanes)
                    k.set(result, rounded_product(result.value, spread))
            with k.when((self.flags & const(HAS_BIAS, "int32")) != const(0, "int32")):
                bias = k.let(self.bias.load(place, lanes), "bias")
                for result in results:
                    k.set(result, result.value + bias)
            if self.top:
                self._keep_largest([result.value for result in results], place)
                continue
            with k.when((self.flags & const(ACCUMULATE, "int32")) != const(0, "int32")):
                for result, row in zip(results, self.token_rows, strict=True):
                    k.set(result, self.out.load(row * self.out_row + to, lanes) + result.value)
            for result, row in zip(results, self.token_rows, strict=True):
                k.store(self.out, row * self.out_row + to, result.value)

    def _keep_largest(self, results: list[Expr], place: Expr) -> None:
        """A unit's results, of every token, against the largest ones of the blocks before."""
        k, lanes = self.k, self.level.lanes
        first = k.let(cast(place, "int32"), "first")
        rows = tirx.Ramp(first, const(1, "int32"), lanes)
        lane = k.let(place & const(ROW_VECTOR - 1, "int64"), "lane")
        nothing = const(float("-inf"), f"float32x{lanes}")
        for result, token in zip(results, self.token_rows, strict=True):
            start = k.let(token * (2 * ROW_VECTOR) + lane, "start")
            largest = k.let(self.out.load(start, lanes), "largest")
            owner = k.let(reinterpret(self.out.load(start + ROW_VECTOR, lanes), f"int32x{lanes}"), "owner")
            value = k.let(tirx.Select(rows < broadcast(self.out_stride, lanes), result, nothing), "value")
            # Blocks come in any order: among equals the lower row stays.
            lower = tirx.Select(value == largest, tirx.min(rows, owner), owner)
            owner = k.let(tirx.Select(value > largest, rows, lower), "owner")
            k.store(self.out, start, tirx.Select(value > largest, value, largest))
            k.store(self.out, start + ROW_VECTOR, reinterpret(owner, f"float32x{lanes}"))
