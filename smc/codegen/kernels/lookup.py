"""Codebook lookups of at most 16 entries by a family's shuffle instruction."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from smc.codegen.kernels.builder import Expr, const, intrinsic, reinterpret, vector_constant
from smc.targets import Level


def lookup_bytes(table: Sequence[int], index: Expr, level: Level, dtype: str) -> Expr:
    """table[index] of every byte: `dtype` [4 * lanes]; index uint8 below 16."""
    lanes = 4 * level.lanes
    vector = _byte_table([value & 0xFF for value in table], lanes)
    if level.family == "arm64":
        found = intrinsic(f"int8x{lanes}", "llvm.aarch64.neon.tbl1.v16i8", vector, reinterpret(index, f"int8x{lanes}"))
    else:
        name = "llvm.x86.avx512.pshuf.b.512" if lanes == 64 else "llvm.x86.avx2.pshuf.b"
        found = intrinsic(f"int8x{lanes}", name, vector, reinterpret(index, f"int8x{lanes}"))
    return reinterpret(found, f"{dtype}x{lanes}")


def lookup_floats(table: Sequence[float], index: Expr, level: Level) -> Expr:
    """float32 [lanes]: table[index & 15], or & 7 where the table is no longer than 8 and a register has 8 lanes."""
    if level.family == "arm64":
        return _lookup_floats_by_bytes(table, index, level.lanes)
    name = "llvm.x86.avx512.permvar.sf.512" if level.lanes == 16 else "llvm.x86.avx2.permps"
    values = [*table, *[0.0] * (16 - len(table))]
    tables = [vector_constant(values[i : i + level.lanes], "float32") for i in range(0, len(table), level.lanes)]
    found = [intrinsic(f"float32x{level.lanes}", name, part, index) for part in tables]
    if len(found) == 1:
        return found[0]
    # The sign bit of the mask selects: bit 3 of the index moved there.
    mask = reinterpret(index << const(28, "int32x8"), "float32x8")
    return intrinsic("float32x8", "llvm.x86.avx.blendv.ps.256", *found, mask)


def _lookup_floats_by_bytes(table: Sequence[float], index: Expr, lanes: int) -> Expr:
    """A table of 64 bytes in four registers; byte b of entry i is byte 4 i + b."""
    data = struct.pack("<16f", *table, *[0.0] * (16 - len(table)))
    tables = [_byte_table(data[i : i + 16], 16) for i in range(0, 64, 16)]
    vector = f"int32x{lanes}"
    places = (index & const(15, vector)) * const(0x04040404, vector) + const(0x03020100, vector)
    found = intrinsic("int8x16", "llvm.aarch64.neon.tbl4.v16i8", *tables, reinterpret(places, "int8x16"))
    return reinterpret(found, f"float32x{lanes}")


def _byte_table(values: Sequence[int], lanes: int) -> Expr:
    """int8 [lanes]: up to 16 bytes, repeated in every 128 bits."""
    data = bytes([*values, *[0] * (16 - len(values))])
    halves = [int.from_bytes(data[i : i + 8], "little", signed=True) for i in (0, 8)]
    return reinterpret(vector_constant(halves * (lanes // 16), "int64"), f"int8x{lanes}")
