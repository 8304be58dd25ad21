"""The matmul: out[token, row] = Σ x[token, column] · weight[row, column], for any encoding on any level.

Put together from *unpack* (encoding → codes), *dot* (level → integer products) and *scale* (here: group scales, zeros,
epilogue), which don't know each other. Reduction order, the same for every tile and level: groups of columns one after
the other along a row, each group's integer dot exact, then one float32 fma a group (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from smc.codegen.kernels.builder import Expr, Kernel, Register, broadcast, cast, const, fma, rounded_product
from smc.codegen.kernels.dot import dot_bias, dot_quad, prepare_codes
from smc.codegen.kernels.specs import ACCUMULATE, HAS_BIAS, sum_group
from smc.codegen.kernels.unpack import (
    QUADS,
    cell,
    float_codes,
    load_floats,
    load_zeros,
    storage_dtype,
    unpack_quad,
    unpacked_bits,
    unsigned_zero,
)
from smc.codegen.layout import ROW_BLOCK, ROW_VECTOR, TILE
from smc.ir import Encoding
from smc.targets import Level


@dataclass(frozen=True)
class Tile:
    """How many tokens and row vectors are in registers at once: the kernel's search space.

    Tokens that do not fill a tile are computed one by one, with both row vectors of a block.
    """

    tokens: int
    vectors: int


def default_tile(encoding: Encoding, level: Level) -> Tile:
    """A tile that fits the registers: accumulators for every token and part of a vector, two where groups have sums."""
    if encoding.is_float:
        return Tile(8, 2) if level.registers >= 32 else Tile(6, 1)
    if encoding.activation == "none":
        return Tile(8, 1) if level.registers >= 32 else Tile(2, 1)
    return Tile(4, 2) if level.registers >= 32 else Tile(2, 1)


def linear_kernel(name: str, encoding: Encoding, level: Level, tile: Tile | None = None) -> Kernel:
    """int32_t name(x, x_scales, x_sums, codes, scales, zeros, bias, out,
                    tokens, columns, x_stride, out_stride, flags, begin, end)

    Computes the row blocks begin…end (of 32 rows) for all tokens. x: float32 [tokens, x_stride], or int8 codes with
    x_scales float32 [tokens, x_stride/32] (token-wise: [tokens]) and x_sums int32 [tokens, x_stride/sum_group].
    codes, scales, zeros: the packed matrix (smc.codegen.layout). bias: float32 [rows, padded], read if flags say so.
    out: float32 [tokens, out_stride]; padding rows come out as 0 (plus bias).
    """
    return _Linear(name, encoding, level, tile or default_tile(encoding, level)).build()


class _Linear:
    def __init__(self, name: str, encoding: Encoding, level: Level, tile: Tile) -> None:
        self.encoding, self.level, self.tile = encoding, level, tile
        self.integer = encoding.activation == "i8"
        # One scale a row multiplies the finished sum; but offsets, which it must not touch, are in the sum.
        self.row_scale = not encoding.is_float and not isinstance(encoding.group, int) and not encoding.offset
        k = self.k = Kernel(name)
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
        self.parts = ROW_VECTOR // level.lanes
        self.units: list[tuple[int, int]] = []
        # What an unpacked code has too much by; stored zeros have it subtracted from themselves.
        bias = dot_bias(level, unpacked_bits(encoding))
        self.correction = 0 if encoding.zero == "group" else (unsigned_zero(encoding) or 0) - bias

    def build(self) -> Kernel:
        k, step = self.k, self.tile.tokens
        self.tiles = k.let(cast((self.columns + const(TILE - 1, "int32")) >> const(5, "int32"), "int64"), "tiles")
        self.groups = k.let(self._group_count(), "groups")
        vectors = ROW_BLOCK // ROW_VECTOR
        full = k.let(self.tokens // const(step, "int32"), "full")
        with k.loop(self.end - self.begin, "block", begin=self.begin) as block:
            first = k.let(cast(block, "int64") * vectors, "first")
            with k.loop(const(vectors // self.tile.vectors, "int64"), "pass") as index, k.loop(full, "token_tile") as t:
                vector = k.let(first + index * self.tile.vectors, "vector")
                self._body(vector, self.tile.vectors, k.let(cast(t * step, "int64")), step)
            with k.loop(self.tokens - full * step, "token", begin=full * step) as t:
                self._body(first, vectors, k.let(cast(t, "int64")), 1)
        return k

    def _group_count(self) -> Expr:
        group = self.encoding.group
        if self.encoding.is_float or not isinstance(group, int):
            return const(1, "int64")
        return (self.tiles * TILE + const(group - 1, "int64")) // const(group, "int64")

    # ---- one tile: `count` tokens from `token` on, `vectors` row vectors from `vector` on

    def _body(self, vector: Expr, vectors: int, token: Expr, count: int) -> None:
        k, lanes = self.k, self.level.lanes
        self.units = [(v, p) for v in range(vectors) for p in range(self.parts)]
        rows = [(token + m) for m in range(count)]
        accumulators = [[k.register(const(0.0, f"float32x{lanes}"), "acc") for _ in self.units] for _ in range(count)]
        if self.encoding.is_float:
            self._plain_floats(vector, rows, accumulators)
        elif self.integer:
            self._integers(vector, rows, accumulators)
        else:
            self._float_inputs(vector, rows, accumulators)
        self._epilogue(vector, rows, accumulators)

    def _plain_floats(self, vector: Expr, rows: list[Expr], accumulators: list[list[Register]]) -> None:
        k, lanes = self.k, self.level.lanes
        width = k.let(cast(self.columns, "int64"), "width")
        inputs = [k.let(row * cast(self.x_stride, "int64"), "row") for row in rows]
        with k.loop(width, "column") as column:
            place = k.let(cell(vector, column, width) * ROW_VECTOR, "place")
            weights = [
                k.let(load_floats(self.codes, place + v * ROW_VECTOR + p * lanes, lanes), "w") for v, p in self.units
            ]
            for m, start in enumerate(inputs):
                x = k.let(self.x.load(start + column), "x")
                for u, weight in enumerate(weights):
                    k.set(accumulators[m][u], fma(weight, broadcast(x, lanes), accumulators[m][u].value))

    # ---- int8 inputs

    def _integers(self, vector: Expr, rows: list[Expr], accumulators: list[list[Register]]) -> None:
        """Weight groups outside, tiles of a group inside; an integer sum is flushed where either scale changes."""
        encoding, k = self.encoding, self.k
        token_scale = encoding.activation_group == "token"
        if encoding.group == 16:
            with k.loop(self.tiles, "tile") as tile:
                for half in range(2):
                    group = k.let(tile * 2 + half, "group")
                    sums = self._new_sums(len(rows))
                    self._add_tile(vector, rows, tile, range(half * 4, half * 4 + 4), sums, half)
                    self._flush(vector, rows, accumulators, sums, group, None if token_scale else tile)
            return
        with self._weight_groups() as (group, tiles_of_group):
            if token_scale:
                sums = self._new_sums(len(rows))
                with tiles_of_group() as tile:
                    self._add_tile(vector, rows, tile, range(QUADS), sums)
                self._flush(vector, rows, accumulators, sums, group, None)
                return
            scales = self._group_scales(vector, group)
            with tiles_of_group() as tile:
                sums = self._new_sums(len(rows))
                self._add_tile(vector, rows, tile, range(QUADS), sums)
                self._flush(vector, rows, accumulators, sums, group, tile, scales)

    @contextmanager
    def _weight_groups(self) -> Iterator[tuple[Expr, Callable[[], AbstractContextManager[Expr]]]]:
        """Loop over weight groups; yields the group and a context that loops over its tiles (one: no loop)."""
        k, size = self.k, self.encoding.group
        if not isinstance(size, int):
            yield const(0, "int64"), lambda: k.loop(self.tiles, "tile")
        elif size == TILE:
            with k.loop(self.groups, "group") as group:

                @contextmanager
                def only() -> Iterator[Expr]:
                    yield group

                yield group, only
        else:
            per_group = size // TILE
            with k.loop(self.groups, "group") as group:
                first = k.let(group * per_group, "first")
                left = self.tiles - first

                def several() -> AbstractContextManager[Expr]:
                    import tvm.tirx as tirx

                    return k.loop(k.let(tirx.min(left, const(per_group, "int64"))), "tile", begin=first)

                yield group, several

    def _new_sums(self, count: int) -> list[tuple[list[Register], Register]]:
        """For every token: an int32 sum a part, and the sum of its inputs (for zeros)."""
        k, lanes = self.k, self.level.lanes
        return [
            ([k.register(const(0, f"int32x{lanes}"), "dot") for _ in self.units], k.register(const(0, "int32"), "sum"))
            for _ in range(count)
        ]

    def _add_tile(
        self,
        vector: Expr,
        rows: list[Expr],
        tile: Expr,
        quads: range,
        sums: list[tuple[list[Register], Register]],
        half: int = 0,
    ) -> None:
        k, level, encoding = self.k, self.level, self.encoding
        bits = unpacked_bits(encoding)
        tile_bytes = ROW_VECTOR * TILE * encoding.bits // 8
        places = {v: k.let(cell(vector, tile, self.tiles, v) * tile_bytes, "place") for v, p in self.units if p == 0}
        x_tiles = cast(self.x_stride >> const(5, "int32"), "int64")
        inputs = [k.let((row * x_tiles + tile) * QUADS, "input") for row in rows]
        for m, row in enumerate(rows):
            per_tile = TILE // sum_group(encoding)
            total = k.let(self.x_sums.load((row * x_tiles + tile) * per_tile + half), "total")
            k.set(sums[m][1], sums[m][1].value + total)
            if self.correction:
                excess = k.let(broadcast(total * const(-self.correction, "int32"), level.lanes), "excess")
                for dot in sums[m][0]:
                    k.set(dot, dot.value + excess)
        for quad in quads:
            codes = [
                prepare_codes(k, level, bits, unpack_quad(k, encoding, level, self.codes, places[v], quad, p))
                for v, p in self.units
            ]
            for m, start in enumerate(inputs):
                x = k.let(self.x.load(start + quad), "x")
                for u, code in enumerate(codes):
                    k.set(sums[m][0][u], dot_quad(k, level, bits, sums[m][0][u].value, code, x))

    def _flush(
        self,
        vector: Expr,
        rows: list[Expr],
        accumulators: list[list[Register]],
        sums: list[tuple[list[Register], Register]],
        group: Expr,
        tile: Expr | None,
        scales: list[Expr] | None = None,
    ) -> None:
        """accumulator += (dot - zero * sum) * weight scale * input scale; a whole row's scale comes in the epilogue."""
        k, level, encoding, lanes = self.k, self.level, self.encoding, self.level.lanes
        scales = scales if scales is not None else self._group_scales(vector, group)
        bias = dot_bias(level, unpacked_bits(encoding))
        stored = self._stored_zeros(vector, group, bias) if encoding.zero == "group" else None
        offsets = self._group_scales(vector, group, offset=True) if encoding.offset else None
        x_tiles = cast(self.x_stride >> const(5, "int32"), "int64")
        for m, row in enumerate(rows):
            dots, total = sums[m]
            x_scale = k.let(self.x_scales.load(row * x_tiles + tile), "x_scale") if tile is not None else None
            for u in range(len(self.units)):
                dot = dots[u].value
                if stored is not None:
                    dot = dot - stored[u] * broadcast(total.value, lanes)
                factor = scales[u] if scales else None
                if x_scale is not None:
                    spread = broadcast(x_scale, lanes)
                    factor = spread if factor is None else factor * spread
                value = cast(dot, f"float32x{lanes}")
                old = accumulators[m][u].value
                k.set(accumulators[m][u], value + old if factor is None else fma(value, factor, old))
                if offsets is not None:
                    amount = cast(total.value, "float32")
                    amount = amount if x_scale is None else amount * x_scale
                    k.set(
                        accumulators[m][u], fma(offsets[u], broadcast(k.let(amount), lanes), accumulators[m][u].value)
                    )

    # ---- scales and zeros

    def _group_scales(self, vector: Expr, group: Expr, offset: bool = False) -> list[Expr]:
        """float32 [lanes] for every unit; empty where the whole row has one scale, which the epilogue applies."""
        if self.row_scale:
            return []
        return [self._scale((vector, v), group, p, offset) for v, p in self.units]

    def _scale(self, place: tuple[Expr, int], group: Expr, part: int, offset: bool = False) -> Expr:
        lanes = self.level.lanes
        vector, v = place
        index = cell(vector, group, self.groups, v) * ROW_VECTOR + part * lanes
        if offset:
            # Offsets follow the scales of all row vectors; out_stride is the number of padded rows.
            index = index + cast(self.out_stride, "int64") * self.groups
        return self.k.let(load_floats(self.scales, index, lanes), "scale")

    def _stored_zeros(self, vector: Expr, group: Expr, bias: int) -> list[Expr]:
        zeros = []
        for v, p in self.units:
            zero = load_zeros(self.encoding, self.level, self.zeros, (vector, v), self.groups, group, p)
            zeros.append(self.k.let(zero - const(bias, f"int32x{self.level.lanes}") if bias else zero, "zero"))
        return zeros

    # ---- float inputs, quantized weights

    def _float_inputs(self, vector: Expr, rows: list[Expr], accumulators: list[list[Register]]) -> None:
        k = self.k
        if self.encoding.group == 16:
            with k.loop(self.tiles, "tile") as tile:
                for half in range(2):
                    group = k.let(tile * 2 + half, "group")
                    partial = self._new_partial(len(rows))
                    zeros = self._float_zeros(vector, group)
                    self._add_float_tile(vector, rows, tile, range(half * 4, half * 4 + 4), partial, zeros)
                    self._flush_floats(vector, accumulators, partial, group)
            return
        with self._weight_groups() as (group, tiles_of_group):
            partial = self._new_partial(len(rows))
            zeros = self._float_zeros(vector, group)
            with tiles_of_group() as tile:
                self._add_float_tile(vector, rows, tile, range(QUADS), partial, zeros)
            self._flush_floats(vector, accumulators, partial, group)

    def _new_partial(self, count: int) -> list[tuple[list[Register], Register]]:
        k, lanes = self.k, self.level.lanes
        return [
            (
                [k.register(const(0.0, f"float32x{lanes}"), "part") for _ in self.units],
                k.register(const(0.0, "float32"), "sum"),
            )
            for _ in range(count)
        ]

    def _float_zeros(self, vector: Expr, group: Expr) -> list[Expr] | None:
        if self.encoding.zero != "group":
            return None
        lanes = self.level.lanes
        return [self.k.let(cast(zero, f"float32x{lanes}"), "zero") for zero in self._stored_zeros(vector, group, 0)]

    def _add_float_tile(
        self,
        vector: Expr,
        rows: list[Expr],
        tile: Expr,
        quads: range,
        partial: list[tuple[list[Register], Register]],
        zeros: list[Expr] | None,
    ) -> None:
        k, level, encoding, lanes = self.k, self.level, self.encoding, self.level.lanes
        tile_bytes = ROW_VECTOR * TILE * encoding.bits // 8
        places = {v: k.let(cell(vector, tile, self.tiles, v) * tile_bytes, "place") for v, p in self.units if p == 0}
        inputs = [k.let(row * cast(self.x_stride, "int64") + tile * TILE, "input") for row in rows]
        for quad in quads:
            codes = [unpack_quad(k, encoding, level, self.codes, places[v], quad, p) for v, p in self.units]
            for column in range(4):
                values = [float_codes(k, encoding, level, code, column) for code in codes]
                if zeros is not None:
                    values = [k.let(value - zero) for value, zero in zip(values, zeros, strict=True)]
                for m, start in enumerate(inputs):
                    x = k.let(self.x.load(start + (quad * 4 + column)), "x")
                    if encoding.offset:
                        k.set(partial[m][1], partial[m][1].value + x)
                    for u, value in enumerate(values):
                        k.set(partial[m][0][u], fma(value, broadcast(x, lanes), partial[m][0][u].value))

    def _flush_floats(
        self,
        vector: Expr,
        accumulators: list[list[Register]],
        partial: list[tuple[list[Register], Register]],
        group: Expr,
    ) -> None:
        k, lanes = self.k, self.level.lanes
        scales = self._group_scales(vector, group)
        offsets = self._group_scales(vector, group, offset=True) if self.encoding.offset else None
        for m, (parts, total) in enumerate(partial):
            for u, part in enumerate(parts):
                accumulator = accumulators[m][u]
                k.set(
                    accumulator,
                    fma(part.value, scales[u], accumulator.value) if scales else part.value + accumulator.value,
                )
                if offsets is not None:
                    k.set(accumulator, fma(offsets[u], broadcast(total.value, lanes), accumulator.value))

    # ---- epilogue

    def _epilogue(self, vector: Expr, rows: list[Expr], accumulators: list[list[Register]]) -> None:
        k, encoding, lanes = self.k, self.encoding, self.level.lanes
        token_scale = self.integer and encoding.activation_group == "token"
        stride = k.let(cast(self.out_stride, "int64"), "stride")
        for u, (v, p) in enumerate(self.units):
            place = k.let((vector + v) * ROW_VECTOR + p * lanes, "row")
            scale = self._scale((vector, v), const(0, "int64"), p) if self.row_scale else None
            for m, row in enumerate(rows):
                accumulator = accumulators[m][u]
                if scale is not None:
                    k.set(accumulator, rounded_product(accumulator.value, scale))
                if token_scale:
                    spread = broadcast(self.x_scales.load(row), lanes)
                    k.set(accumulator, rounded_product(accumulator.value, spread))
            with k.when((self.flags & const(HAS_BIAS, "int32")) != const(0, "int32")):
                bias = k.let(self.bias.load(place, lanes), "bias")
                for m in range(len(rows)):
                    k.set(accumulators[m][u], accumulators[m][u].value + bias)
            with k.when((self.flags & const(ACCUMULATE, "int32")) != const(0, "int32")):
                for m, row in enumerate(rows):
                    old = self.out.load(row * stride + place, lanes)
                    k.set(accumulators[m][u], old + accumulators[m][u].value)
            for m, row in enumerate(rows):
                k.store(self.out, row * stride + place, accumulators[m][u].value)
