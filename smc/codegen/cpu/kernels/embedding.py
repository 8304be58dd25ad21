"""The embedding lookup: rows of the packed table, decoded."""

from __future__ import annotations

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Kernel, Pointer, broadcast, cast, const, fma, reinterpret
from smc.codegen.cpu.kernels.unpack import VECTOR_BYTES, cell, scale_place, storage_dtype, tile_place
from smc.codegen.kernels.layout import QUADS, ROW_VECTOR, TILE, planes, span_of, stored_bias
from smc.codegen.kernels.specs import EmbeddingKernel
from smc.ir import Encoding
from smc.targets import CpuLevel

LEVEL_TABLE = 128
"""Entries of a codebook that fit one table of an embedding."""


def embedding_kernel(name: str, spec: EmbeddingKernel, level: CpuLevel) -> Kernel:
    """Rows of the packed table, for the tokens begin…end.

    out: float32 [tokens, stride], the padding set to 0. scale: what values are multiplied by. rows: padded rows of the
    table, columns: its true width.
    """
    k, encoding = Kernel(name, spec.signature()), spec.encoding
    tokens = k.pointer("tokens")
    codes = k.pointer("codes", storage_dtype(encoding.float_dtype) if encoding.is_float else "uint8")
    scales = k.pointer("scales", storage_dtype(encoding.scales.dtype))
    zeros, out = k.pointer("zeros"), k.pointer("out")
    rows, columns, stride = k.scalar("rows"), k.scalar("columns"), k.scalar("stride")
    scale = k.scalar("scale")
    begin, end = k.scalar("begin"), k.scalar("end")
    width, stride64 = k.let(cast(columns, "int64"), "width"), k.let(cast(stride, "int64"), "stride")
    with k.loop(end - begin, "token", begin=begin) as t:
        start = k.let(cast(t, "int64") * stride64, "start")
        row = k.let(cast(tokens.load(t), "int64"), "row")
        vector, lane = k.let(row // ROW_VECTOR, "vector"), k.let(row % ROW_VECTOR, "lane")
        if encoding.is_float:
            with k.loop(width, "column") as column:
                value = _scalar_float(codes, cell(vector, column, width) * ROW_VECTOR + lane)
                k.store(out, start + column, value * scale)
        else:
            decoder = _RowDecoder(k, encoding, level.family, (codes, scales, zeros), width, cast(rows, "int64"))
            decoder.decode(vector, lane, out, start, scale)
        with k.loop(stride64 - width, "column", begin=width) as column:
            k.store(out, start + column, const(0.0, "float32"))
    return k


class _RowDecoder:
    """Decodes rows of quantized weights, of `width` columns; rows: padded ones of the table (int64)."""

    def __init__(
        self,
        kernel: Kernel,
        encoding: Encoding,
        family: str,
        pointers: tuple[Pointer, Pointer, Pointer],
        width: Expr,
        rows: Expr,
    ) -> None:
        k, self.kernel, self.encoding, self.family, self.rows = kernel, kernel, encoding, family, rows
        self.codes, self.scales, self.zeros = pointers
        self.tiles = k.let((width + const(TILE - 1, "int64")) // TILE, "tiles")
        self.group_size = encoding.scales.group if isinstance(encoding.scales.group, int) else None
        self.groups = const(1, "int64")
        if size := self.group_size:
            self.groups = k.let((self.tiles * TILE + const(size - 1, "int64")) // size, "groups")
        self.per_scale = const(encoding.scales.super_group or 1, "int64")
        self.super_groups = k.let((self.groups + self.per_scale - const(1, "int64")) // self.per_scale, "super_groups")
        self.levels = _level_tables(k, encoding)

    def decode(self, vector: Expr, lane: Expr, out: Pointer, start: Expr, scale: Expr) -> None:
        """The row `lane` of a row vector, times scale, to `out`, from `start` on: four neighbouring columns at a time.

        Columns beyond a padded tile overwrite only padding.
        """
        k, encoding = self.kernel, self.encoding
        with k.loop(self.tiles, "tile") as tile:
            place = tile_place(k, encoding, vector, tile, self.tiles)
            base = k.let(place.begin + lane * 4, "base")
            power = None if place.digit is None else k.let(place.power(), "power")
            for quad in range(QUADS):
                column = k.let(tile * TILE + quad * 4, "column")
                if power is not None:
                    code = _base3_codes(self.codes.load(base + quad * VECTOR_BYTES, 4), power)
                else:
                    code = _packed_codes(encoding, self.family, self.codes, base, quad)
                group = k.let(column // self.group_size, "group") if self.group_size else const(0, "int64")
                k.store(out, start + column, self._values(code, vector, lane, group) * broadcast(scale, 4))

    def _values(self, code: Expr, vector: Expr, lane: Expr, group: Expr) -> Expr:
        """float32 [4]: the values of a group's codes."""
        k, encoding, size = self.kernel, self.encoding, self.per_scale
        index = k.let(cell(vector, group, self.groups) * ROW_VECTOR + lane, "index")
        outer = cell(vector, group // size, self.super_groups) * ROW_VECTOR + lane
        if span_of(encoding):
            outer = scale_place(encoding, vector, group, self.tiles) + lane
        number, begin = _scalar_float(self.scales, outer), lane
        if encoding.scales.super_group is not None:
            inner = self.zeros.load(index)
            inner = reinterpret(inner, "int8") if encoding.scales.signed_codes else inner
            number = number * cast(cast(inner, "int32"), "float32")
            begin = lane + self.rows * self.groups  # of the zeros, behind the codes of the scales
        scale = broadcast(k.let(number, "scale"), 4)
        value = self._less_zero(code, vector, group, begin)
        if not encoding.stores_minima:
            return value * scale
        behind = (outer if encoding.has_two_level_minima else index) + self.rows * self.super_groups
        if span_of(encoding):
            behind = scale_place(encoding, vector, group, self.tiles, part=1) + lane
        number = _scalar_float(self.scales, behind)
        if encoding.has_two_level_minima:
            number = number * cast(cast(self.zeros.load(index + self.rows * self.groups), "int32"), "float32")
        return fma(value, scale, broadcast(k.let(number, "offset"), 4))

    def _less_zero(self, code: Expr, vector: Expr, group: Expr, lane: Expr) -> Expr:
        """float32 [4]: codes minus zero, or codebook entries. lane: where zeros begin, and a row in its row vector."""
        k, encoding = self.kernel, self.encoding
        if self.levels:
            code = k.let(code, "code")
            values = [table.load(code & const(LEVEL_TABLE - 1, "int32x4")) for table in self.levels]
            if len(values) == 1:
                return k.let(values[0], "level")
            return k.let(tirx.Select(code < const(LEVEL_TABLE, "int32x4"), values[0], values[1]), "level")
        if encoding.stores_zeros:
            if encoding.zero_bits == 8:
                zero = cast(self.zeros.load(cell(vector, group, self.groups) * ROW_VECTOR + lane), "int32")
            else:
                one = const(1, "int64")
                byte = self.zeros.load(cell(vector, group >> one, (self.groups + one) >> one) * ROW_VECTOR + lane)
                zero = (cast(byte, "int32") >> cast((group & one) * const(4, "int64"), "int32")) & const(15, "int32")
            code = code - broadcast(k.let(zero, "zero"), 4)
        elif encoding.constant_zero:
            code = code - const(encoding.constant_zero, "int32x4")
        return cast(code, "float32x4")


def _packed_codes(encoding: Encoding, family: str, codes: Pointer, base: Expr, quad: int) -> Expr:
    """int32 [4]: the codes of four columns from their planes."""
    code, plane_base, low = None, 0, 0
    for width in planes(encoding.bits):
        per_byte = 8 // width
        piece = cast(codes.load(base + plane_base + quad // per_byte * VECTOR_BYTES, 4), "int32x4")
        piece = (piece >> const(quad % per_byte * width, "int32x4")) & const((1 << width) - 1, "int32x4")
        piece = piece << const(low, "int32x4") if low else piece
        code = piece if code is None else code | piece
        plane_base += width * VECTOR_BYTES
        low += width
    bias = stored_bias(encoding, family)
    return code ^ const(bias, "int32x4") if bias else code


def _base3_codes(stored: Expr, power: Expr) -> Expr:
    """int32 [4]: one digit of each of four base-3 bytes, which are fractions of 256 (kernels/layout.py)."""
    fraction = (cast(stored, "int32x4") * broadcast(power, 4)) & const(0xFF, "int32x4")
    return (fraction * const(3, "int32x4")) >> const(8, "int32x4")


def _scalar_float(pointer: Pointer, index: Expr) -> Expr:
    """float32 from f32, f16 or bf16 (as uint16) storage."""
    value = pointer.load(index)
    if pointer.dtype == "uint16":
        return reinterpret(cast(value, "uint32") << const(16, "uint32"), "float32")
    return cast(value, "float32")


def _level_tables(k: Kernel, encoding: Encoding) -> list[Pointer]:
    """The codebook in memory, in tables of 128 levels."""
    levels, tables = encoding.entries, []
    for begin in range(0, len(levels), LEVEL_TABLE):
        part = levels[begin : begin + LEVEL_TABLE]
        tables.append(k.array("float32", LEVEL_TABLE, "levels"))
        for place, level in enumerate(part):
            k.store(tables[-1], const(place, "int64"), const(level, "float32"))
    return tables
