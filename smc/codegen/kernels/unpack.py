"""Unpack: encoding → lanes. Reads packed bytes and gives codes, scales and zeros as vectors, knowing no machine's dot.

A *part* is as many of a row vector's 16 rows as a machine's register has float lanes.
"""

from __future__ import annotations

from collections.abc import Sequence

from smc.codegen.kernels.builder import (
    Expr,
    Kernel,
    Pointer,
    broadcast,
    cast,
    const,
    intrinsic,
    reinterpret,
    vector_constant,
)
from smc.codegen.layout import ROW_VECTOR, planes
from smc.ir import Encoding
from smc.targets import Level

VECTOR_BYTES = 4 * ROW_VECTOR
QUADS = 8
"""Vectors of a tile: each lane has four neighbouring columns of its row."""


def cell(vector: Expr, index: Expr, count: Expr, offset: int = 0) -> Expr:
    """Which cell of 16 rows, in the layout's order [row block][index of count][row vector], a row vector has.

    offset: for the vector after an even one.
    """
    one = const(1, "int64")
    return ((vector >> one) * count + index) * 2 + (vector & one) + offset


def unsigned_zero(encoding: Encoding) -> int | None:
    """The constant that the unpacked codes of value 0 have; None where zeros are stored or there is an offset."""
    if encoding.levels is not None:
        return 128
    return encoding.zero if isinstance(encoding.zero, int) else None


def unpacked_bits(encoding: Encoding) -> int:
    """How many bits the unpacked codes use: levels become level + 128."""
    return 8 if encoding.levels is not None else encoding.bits


def unpack_quad(
    kernel: Kernel, encoding: Encoding, level: Level, codes: Pointer, tile: Expr, quad: int, part: int
) -> Expr:
    """Unsigned codes (levels: level + 128) of one quad of a tile: uint8 [4 * lanes], row by row.

    tile: byte offset (int64) of the tile in `codes`. The loads of one packed vector are merged by LLVM.
    """
    lanes = 4 * level.lanes
    code, base, low = None, 0, 0
    for width in planes(encoding.bits):
        per_byte = 8 // width
        offset = base + quad // per_byte * VECTOR_BYTES + part * lanes
        plane = codes.load(tile + offset, lanes)
        shift = quad % per_byte * width
        if shift:
            plane = plane >> const(shift, f"uint8x{lanes}")
        if shift + width < 8:
            plane = plane & const((1 << width) - 1, f"uint8x{lanes}")
        if low:
            plane = plane << const(low, f"uint8x{lanes}")
        code = plane if code is None else code | plane
        base += width * VECTOR_BYTES
        low += width
    assert code is not None
    if encoding.levels is not None and encoding.grid == "i8":
        code = _lookup_bytes(encoding.levels, code, level)
    return kernel.let(code, "code")


def _lookup_bytes(levels: tuple[float, ...], code: Expr, level: Level) -> Expr:
    """level + 128 of every code, by a byte shuffle in each 128-bit lane."""
    table = [int(v) + 128 for v in levels] + [0] * (16 - len(levels))
    halves = [int.from_bytes(bytes(table[i : i + 8]), "little", signed=True) for i in (0, 8)]
    lanes = 4 * level.lanes
    vector = reinterpret(vector_constant(halves * (lanes // 16), "int64"), f"int8x{lanes}")
    name = "llvm.x86.avx512.pshuf.b.512" if lanes == 64 else "llvm.x86.avx2.pshuf.b"
    return reinterpret(intrinsic(f"int8x{lanes}", name, vector, reinterpret(code, f"int8x{lanes}")), f"uint8x{lanes}")


def float_codes(kernel: Kernel, encoding: Encoding, level: Level, code: Expr, column: int) -> Expr:
    """float32 [lanes] of one of a quad's four columns: the code (or level) as a number, less its constant zero."""
    lanes, zero = level.lanes, unsigned_zero(encoding) or 0
    word = reinterpret(code, f"int32x{lanes}") >> const(8 * column, f"int32x{lanes}")
    if encoding.levels is not None and encoding.grid != "i8":
        return kernel.let(_lookup_floats(encoding.levels, word, level), "value")
    if encoding.levels is None and 1 << encoding.bits <= lanes:
        # One lookup instead of mask, subtraction and conversion.
        values = [float(code - zero) for code in range(1 << encoding.bits)]
        return kernel.let(_lookup_floats(values, word, level), "value")
    index = (word & const(255, f"int32x{lanes}")) - const(zero, f"int32x{lanes}")
    return kernel.let(cast(index, f"float32x{lanes}"), "value")


def _lookup_floats(levels: Sequence[float], index: Expr, level: Level) -> Expr:
    """float32 [lanes]: at most 16 levels looked up; only the lowest 3 or 4 bits of an index count."""
    name = "llvm.x86.avx512.permvar.sf.512" if level.lanes == 16 else "llvm.x86.avx2.permps"
    values = [*levels, *[0.0] * (16 - len(levels))]
    tables = [vector_constant(values[i : i + level.lanes], "float32") for i in range(0, len(levels), level.lanes)]
    found = [intrinsic(f"float32x{level.lanes}", name, table, index) for table in tables]
    if len(found) == 1:
        return found[0]
    # The sign bit of the mask selects: bit 3 of the index moved there.
    mask = reinterpret(index << const(28, "int32x8"), "float32x8")
    return intrinsic("float32x8", "llvm.x86.avx.blendv.ps.256", *found, mask)


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
    encoding: Encoding, level: Level, zeros: Pointer, place: tuple[Expr, int], groups: Expr, group: Expr, part: int
) -> Expr:
    """int32 [lanes]: the stored zeros of a group. place: row vector (int64) and offset, groups: of a row (int64)."""
    vector, offset = place
    lanes = level.lanes
    if encoding.zero_bits == 8:
        stored = zeros.load(cell(vector, group, groups, offset) * ROW_VECTOR + part * lanes, lanes)
        return cast(stored, f"int32x{lanes}")
    one = const(1, "int64")
    pairs = (groups + one) >> one
    stored = cast(
        zeros.load(cell(vector, group >> one, pairs, offset) * ROW_VECTOR + part * lanes, lanes), f"int32x{lanes}"
    )
    shift = cast((group & one) * const(4, "int64"), "int32")
    return (stored >> broadcast(shift, lanes)) & const(15, f"int32x{lanes}")
