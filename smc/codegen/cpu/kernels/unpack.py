"""Unpack: encoding → lanes. Reads packed bytes and returns codes, scales and zeros as vectors; it does not depend on
the dot product.

A *unit* is as many of a row vector's 16 rows as a machine's register has float lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smc.codegen.cpu.builder import Expr, Kernel, Pointer, broadcast, cast, const, dtype_of, intrinsic, reinterpret
from smc.codegen.cpu.isa import DIGIT_SHIFT, has_few_registers, isa
from smc.codegen.cpu.kernels.lookup import lookup_bytes, lookup_floats
from smc.codegen.kernels.layout import FIVE, QUADS, ROW_BLOCK, ROW_VECTOR, TILE, Span, planes, span_of, stored_bias
from smc.ir import Encoding
from smc.ir.encoding import FLOAT_BYTES
from smc.targets import CpuLevel

VECTOR_BYTES = 4 * ROW_VECTOR


def cell(vector: Expr, index: Expr, count: Expr, offset: int = 0) -> Expr:
    """Which cell of 16 rows, in the layout's order [row block][index of count][row vector], a row vector has.

    offset: for the vector after an even one.
    """
    one = const(1, "int64")
    return ((vector >> one) * count + index) * 2 + (vector & one) + offset


@dataclass(frozen=True)
class TilePlace:
    """Where the codes of a tile and row vector are: `begin` in bytes (int64); base 3: which `digit` (int64)."""

    begin: Expr
    digit: Expr | None = None

    def power(self) -> Expr:
        """int32: the power of 3 that brings the digit to the front of its fraction."""
        # 1, 3, 9, 27 and 81 are bytes of one number.
        powers = const(int.from_bytes(bytes(3**i for i in range(FIVE)), "little"), "int64")
        return cast((powers >> (self.digit * const(8, "int64"))) & const(255, "int64"), "int32")


def tile_place(kernel: Kernel, encoding: Encoding, vector: Expr, tile: Expr, tiles: Expr, offset: int = 0) -> TilePlace:
    """The place of a tile (int64) of `tiles`; offset: for the vector after an even one."""
    if not encoding.is_base3:
        size, span = ROW_VECTOR * TILE * encoding.bits // 8, span_of(encoding)
        if span is None:
            return TilePlace(kernel.let(cell(vector, tile, tiles, offset) * size, "place"))
        one = const(1, "int64")
        begin = _block_begin(vector, tiles, span) + (tile // const(span.tiles, "int64") + one) * span.scale_bytes
        return TilePlace(kernel.let(begin + tile * span.tile_bytes + ((vector & one) + offset) * size, "place"))
    five = const(FIVE, "int64")
    begin = kernel.let(cell(vector, tile // five, (tiles + const(FIVE - 1, "int64")) // five, offset), "place")
    return TilePlace(begin * (QUADS * VECTOR_BYTES), kernel.let(tile % five, "digit"))


def _block_begin(vector: Expr, tiles: Expr, span: Span) -> Expr:
    """Where a row vector's block begins, in bytes."""
    spans = tiles if span.tiles == 1 else (tiles + const(span.tiles - 1, "int64")) // const(span.tiles, "int64")
    return (vector >> const(1, "int64")) * (spans * span.scale_bytes + tiles * span.tile_bytes)


def scale_place(encoding: Encoding, vector: Expr, group: Expr, tiles: Expr, offset: int = 0, part: int = 0) -> Expr:
    """The first of a row vector's scales of a group that lie between codes (part 1: of the offsets), in scales."""
    span, size = span_of(encoding), FLOAT_BYTES[encoding.scales.dtype]
    assert span is not None
    begin, index = _block_begin(vector, tiles, span), const(part * span.groups, "int64")
    if span.groups == 1:
        begin = begin + group * span.total_bytes
    else:
        groups = const(span.groups, "int64")
        begin, index = begin + group // groups * span.total_bytes, index + group % groups
    one = const(1, "int64")
    return begin // const(size, "int64") + index * ROW_BLOCK + ((vector & one) + offset) * ROW_VECTOR


@dataclass(frozen=True)
class CodeForm:
    """How unpacked bytes hold codes: byte = (code or level + offset) << shift, in `bits` bits, signed or not.

    split: magnitudes and signs (-1 or 0) are bytes of their own.
    """

    bits: int
    offset: int
    shift: int
    signed: bool
    split: bool = False

    @property
    def dtype(self) -> str:
        """Of a byte."""
        return "int8" if self.signed else "uint8"

    @property
    def magnitude(self) -> int:
        """The largest absolute value of a byte."""
        return (1 << (self.bits - self.signed)) << self.shift


def code_form(encoding: Encoding, level: CpuLevel) -> CodeForm:
    """What `unpack_quad` gives on a level."""
    signed = isa(level).signed_codes(encoding)
    if encoding.has_integer_codebook:
        return CodeForm(8, 0 if signed else 128, 0, signed)
    if encoding.has_codebook:
        return CodeForm(encoding.bits, 0, 0, signed=False)
    shift = isa(level).code_shift(encoding, signed)
    offset = 0 if not signed or encoding.is_base3 else -(1 << (encoding.bits - 1))
    return CodeForm(encoding.bits, offset, shift, signed)


def unpacked_zero(encoding: Encoding, level: CpuLevel) -> int:
    """The unpacked code, not shifted, of value 0; 0 if zeros are stored, because these include the offset."""
    if encoding.stores_zeros:
        return 0
    return (encoding.constant_zero or 0) + code_form(encoding, level).offset


def unpack_quad(
    kernel: Kernel,
    encoding: Encoding,
    level: CpuLevel,
    codes: Pointer,
    tile: TilePlace,
    quad: int,
    row: Expr,
    fractions: Fractions | None = None,
) -> Expr:
    """One quad of a tile for the rows of a unit: bytes in the level's `code_form` [4 * lanes], row by row.

    row: the unit's first in the row vector (int64). fractions: of base 3 on x86, the unit's.
    The loads of one packed vector are merged by LLVM.
    """
    lanes, form = 4 * level.lanes, code_form(encoding, level)
    begin = tile.begin + row * 4
    if fractions is not None:
        code = fractions.next_digits(quad)
        if not form.shift:
            # No bits of a byte reach its neighbour.
            words = f"uint16x{lanes // 2}"
            code = reinterpret(reinterpret(code, words) >> const(DIGIT_SHIFT, words), f"uint8x{lanes}")
    elif encoding.is_base3:
        code = _base3_digits(kernel, codes.load(begin + quad * VECTOR_BYTES, lanes), tile.power())
    else:
        code = _packed_codes(encoding, form, codes, begin, quad, lanes, stored_bias(encoding, level.family) > 0)
    if encoding.has_integer_codebook:
        entries = [int(v) + form.offset for v in encoding.entries]
        code = lookup_bytes(entries, kernel.let(code, "index"), level, form.dtype)
    elif dtype_of(code) != f"{form.dtype}x{lanes}":
        code = reinterpret(code, f"{form.dtype}x{lanes}")
    return kernel.let(code, "code")


class Fractions:
    """A unit's bytes of base 3 on x86: fractions on the stack, each of which gives one digit per tile.

    A fraction f is followed by g = 3 f modulo 256, and 3 f - g is 256 times the digit: x86, which has no products and
    no shifts of bytes, takes 64 times it as f - (f + g) / 4. That sum is 4 f - 256 times the digit, a multiple of 4:
    its mean is exact and even, so that shifting words moves no bit into the next byte.
    """

    def __init__(self, kernel: Kernel, level: CpuLevel, tiles: Expr) -> None:
        self.kernel, self.lanes = kernel, 4 * level.lanes
        self.array = kernel.array("uint8", QUADS * self.lanes, "fractions")
        # This is 0, which LLVM can't know. Else it would keep the fractions in registers, of which there are few.
        self.begin = const(0, "int64")
        if has_few_registers(level):
            self.begin = kernel.let(tiles >> const(40, "int64"), "begin")

    def load(self, codes: Pointer, begin: Expr, quads: range) -> None:
        """Take the bytes of the next five tiles; begin: where the unit's are (int64)."""
        for quad in quads:
            fraction = codes.load(begin + quad * VECTOR_BYTES, self.lanes)
            self.kernel.store(self.array, self.begin + quad * self.lanes, fraction)

    def step(self, quad: int) -> tuple[Expr, Expr]:
        """uint8 [4 * lanes]: a quad's fractions, and the following ones, which the next tile uses."""
        k, place = self.kernel, self.begin + quad * self.lanes
        fraction = k.let(self.array.load(place, self.lanes), "fraction")
        following = k.let(fraction + fraction + fraction, "following")
        k.store(self.array, place, following)
        return fraction, following

    def next_digits(self, quad: int) -> Expr:
        """uint8 [4 * lanes]: 64 times the digits of a quad; the next call gives those of the next tile."""
        dtype, words, wide = f"uint8x{self.lanes}", f"uint16x{self.lanes // 2}", f"uint16x{self.lanes}"
        fraction, following = self.step(quad)
        total = cast(fraction, wide) + cast(following, wide) + const(1, wide)
        mean = reinterpret(cast(total >> const(1, wide), dtype), words)
        return self.kernel.let(fraction - reinterpret(mean >> const(1, words), dtype), "digits")


@dataclass(frozen=True)
class InPlace:
    """How to multiply one token without unpacking codes: bytes are multiplied as they are stored, and `combined`
    computes the sums of codes from `count` sums of bytes.

    Either codes of `bits` bits are masked in their bytes: a sum for each place, 2**bits times as large as the one
    before. Or fractions f of base 3 with g behind them (`Fractions`): 3 f - g is 256 times the digit.
    """

    count: int
    bits: int

    def terms(self, codes: Pointer, tile: TilePlace, quad: int, row: Expr, fractions: Fractions | None) -> list[Expr]:
        """uint8: the terms of a quad, one per sum, beginning with the sum `sum_of`."""
        if fractions is not None:
            return [*fractions.step(quad)]
        place = quad % self.count
        packed = codes.load(tile.begin + row * 4 + quad // self.count * VECTOR_BYTES, VECTOR_BYTES)
        return [packed & const(((1 << self.bits) - 1) << (place * self.bits), f"uint8x{VECTOR_BYTES}")]

    def sum_of(self, quad: int) -> int:
        """Which sum the first of a quad's terms goes into."""
        return 0 if self.bits == 8 else quad % self.count

    def combined(self, sums: Sequence[Expr], form: CodeForm) -> Expr:
        """int32 [lanes]: the sums of codes, in their form."""
        shift = const(self.bits - form.shift, dtype_of(sums[0]))
        if self.bits == 8:
            return (sums[0] + sums[0] + sums[0] - sums[1]) >> shift
        total = sums[-1]
        for one in reversed(sums[:-1]):
            total = one + (total >> shift)
        return total


def in_place(encoding: Encoding, level: CpuLevel, whole_row: bool) -> InPlace | None:
    """Where multiplying in place takes fewer instructions. whole_row: one sum for many tiles."""
    if not isa(level).multiplies_in_place or encoding.has_codebook or not encoding.rounds_inputs:
        return None
    if encoding.is_base3:
        return InPlace(2, 8)
    # Each place needs a sum in a register.
    masked = whole_row and not has_few_registers(level) and encoding.bits in (2, 4)
    return InPlace(8 // encoding.bits, encoding.bits) if masked else None


def _packed_codes(
    encoding: Encoding, form: CodeForm, codes: Pointer, begin: Expr, quad: int, lanes: int, biased: bool
) -> Expr:
    """Codes of a quad from their planes. biased: they are stored as two's complement."""
    # Sign extension needs the code in the top bits; an index or an unsigned code, in the lowest.
    bottom = 8 - encoding.bits if form.signed and not encoding.has_codebook else 0
    code, base, low = None, 0, 0
    for width in planes(encoding.bits):
        per_byte = 8 // width
        plane = codes.load(begin + (base + quad // per_byte * VECTOR_BYTES), lanes)
        plane = _bit_field(plane, quad % per_byte * width, width, bottom + low)
        code = plane if code is None else code | plane
        base += width * VECTOR_BYTES
        low += width
    assert code is not None
    if form.signed and not encoding.has_codebook:
        if not biased:
            code = code + const(128, f"uint8x{lanes}")
        code = reinterpret(code, f"int8x{lanes}")
        if bottom > form.shift:
            code = code >> const(bottom - form.shift, f"int8x{lanes}")
    return code


def _base3_digits(kernel: Kernel, fractions: Expr, power: Expr) -> Expr:
    """uint8 [16], 0…2, on arm64: 3 times the fraction of power times each byte of base 3."""
    fraction = kernel.let(fractions * broadcast(cast(power, "uint8"), 16), "fraction")
    # (f + f / 2) / 2 is three quarters of it.
    half = fraction >> const(1, "uint8x16")
    return intrinsic("uint8x16", "llvm.aarch64.neon.uhadd.v16i8", fraction, half) >> const(6, "uint8x16")


def _bit_field(value: Expr, begin: int, width: int, to: int) -> Expr:
    """Bits begin…begin+width of every byte moved to bit `to`, the others 0."""
    dtype = dtype_of(value)
    if to > begin:
        value = value << const(to - begin, dtype)
        alone = begin == 0 and to + width == 8
    elif to < begin:
        value = value >> const(begin - to, dtype)
        alone = to == 0 and begin + width == 8
    else:
        alone = width == 8
    return value if alone else value & const(((1 << width) - 1) << to, dtype)


def float_codes(kernel: Kernel, encoding: Encoding, level: CpuLevel, code: Expr, column: int) -> Expr:
    """float32 [lanes] of one of a quad's four columns: the code (or level) as a number, less its constant zero."""
    lanes, form, zero = level.lanes, code_form(encoding, level), unpacked_zero(encoding, level)
    vector = f"int32x{lanes}"
    word = reinterpret(code, vector)
    if form.signed:
        if column < 3:
            word = word << const(24 - 8 * column, vector)
        number = word >> const(24 + form.shift, vector)
        number = number - const(zero, vector) if zero else number
        return kernel.let(cast(number, f"float32x{lanes}"), "value")
    if encoding.has_codebook and not encoding.has_integer_codebook:
        return kernel.let(lookup_floats(encoding.entries, code, column, level), "value")
    if not encoding.has_codebook and 1 << encoding.bits <= lanes:
        # One lookup instead of mask, subtraction and conversion.
        values = [float(code - zero) for code in range(1 << encoding.bits)]
        return kernel.let(lookup_floats(values, code, column, level), "value")
    index = word >> const(8 * column, vector)
    return kernel.let(cast((index & const(255, vector)) - const(zero, vector), f"float32x{lanes}"), "value")


def load_floats(pointer: Pointer, index: Expr, lanes: int) -> Expr:
    """float32 [lanes] from f32, f16 or bf16 (as uint16) storage."""
    value = pointer.load(index, lanes)
    if pointer.dtype == "float16":
        return cast(value, f"float32x{lanes}")
    if pointer.dtype == "uint16":
        return reinterpret(cast(value, f"uint32x{lanes}") << const(16, f"uint32x{lanes}"), f"float32x{lanes}")
    return value


def storage_dtype(name: str) -> str:
    """The pointer dtype for stored floats: bf16 is read as uint16."""
    return {"f32": "float32", "f16": "float16", "bf16": "uint16"}[name]


def load_zeros(
    encoding: Encoding, level: CpuLevel, zeros: Pointer, cells: Sequence[Expr], rows: Expr, group: Expr
) -> Expr:
    """int32 [lanes]: the stored zeros of a group. cells: the group's cell and its pair's; rows: the unit's place in
    it."""
    lanes = level.lanes
    stored = cast(zeros.load(cells[encoding.zero_bits == 4] * ROW_VECTOR + rows, lanes), f"int32x{lanes}")
    if encoding.zero_bits == 8:
        return stored
    shift = cast((group & const(1, "int64")) * const(4, "int64"), "int32")
    return (stored >> broadcast(shift, lanes)) & const(15, f"int32x{lanes}")
