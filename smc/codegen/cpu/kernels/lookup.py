"""Codebook lookups by a family's shuffle instructions, of any number of levels up to 256."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, const, dtype_of, intrinsic, reinterpret, vector_constant
from smc.targets import CpuLevel


def lookup_bytes(table: Sequence[int], index: Expr, level: CpuLevel, dtype: str) -> Expr:
    """table[index] of every byte: `dtype` [4 * lanes]; index uint8 [4 * lanes], below the table's length."""
    lanes = 4 * level.lanes
    tables = [_byte_table([v & 0xFF for v in table[i : i + 16]], lanes) for i in range(0, len(table), 16)]
    if level.family == "arm64":
        return reinterpret(_table_lookup(tables, index), f"{dtype}x{lanes}")
    if lanes == 64 and len(table) > 128:
        return reinterpret(_lookup_pairs(table, index), f"{dtype}x64")
    name = "llvm.x86.avx512.pshuf.b.512" if lanes == 64 else "llvm.x86.avx2.pshuf.b"
    # The instruction gives 0 where the index has its highest bit; of the others it takes the lowest four.
    low = reinterpret(index & const(15, f"uint8x{lanes}") if len(tables) > 8 else index, f"int8x{lanes}")
    found = [intrinsic(f"int8x{lanes}", name, part, low) for part in tables]
    return reinterpret(_select(found, reinterpret(index, f"int8x{lanes}"), 4), f"{dtype}x{lanes}")


def _lookup_pairs(table: Sequence[int], index: Expr) -> Expr:
    """uint16 [32], two bytes of a table of more than 128 in each: AVX-512 looks up words in half as many steps.

    Word i of the table has bytes i and i + 128. The instruction takes the lowest six bits of a word as its index.
    """
    words, bytes_ = "uint16x32", [v & 0xFF for v in [*table, *[0] * (256 - len(table))]]
    pairs = [bytes_[i] | bytes_[i + 128] << 8 for i in range(128)]
    tables = [_word_table(pairs[i : i + 32]) for i in range(0, 128, 32)]
    index = reinterpret(index, words)

    def find(place: Expr, bit: int) -> Expr:
        # bit: of `index`, which says whether the word is among the upper 64.
        name, place = "llvm.x86.avx512.vpermi2var.hi.512", reinterpret(place, "int16x32")
        halves = [intrinsic("int16x32", name, tables[i], place, tables[i + 1]) for i in (0, 2)]
        upper = (index & const(1 << bit, words)) != const(0, words)
        return reinterpret(tirx.Select(upper, halves[1], halves[0]), words)

    eight, low = const(8, words), const(0xFF, words)
    even, odd = find(index, 6), find(index >> eight, 14)
    # The highest bit of an index says which byte of the pair.
    even = tirx.Select((index & const(0x80, words)) != const(0, words), even >> eight, even & low)
    odd = tirx.Select(reinterpret(index, "int16x32") < const(0, "int16x32"), odd & const(0xFF00, words), odd << eight)
    return even | odd


def _word_table(values: Sequence[int]) -> Expr:
    """int16 [32]."""
    data = b"".join(v.to_bytes(2, "little") for v in values)
    parts = [int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, 64, 8)]
    return reinterpret(vector_constant(parts, "int64"), "int16x32")


def lookup_floats(table: Sequence[float], code: Expr, column: int, level: CpuLevel) -> Expr:
    """float32 [lanes]: table[code] for one of the four columns; code: uint8 [4 * lanes], below the table's length."""
    lanes = level.lanes
    if level.family == "arm64" and len(table) > 16:
        return _lookup_planes(table, code, column, level)
    index = reinterpret(code, f"int32x{lanes}") >> const(8 * column, f"int32x{lanes}")
    if level.family == "arm64":
        return _lookup_floats_by_bytes(table, index, lanes)
    name = "llvm.x86.avx512.permvar.sf.512" if lanes == 16 else "llvm.x86.avx2.permps"
    values = [*table, *[0.0] * (-len(table) % lanes)]
    tables = [vector_constant(values[i : i + lanes], "float32") for i in range(0, len(table), lanes)]
    found = [intrinsic(f"float32x{lanes}", name, part, index) for part in tables]
    return _select(found, index, lanes.bit_length() - 1)


def _select(found: list[Expr], index: Expr, bit: int) -> Expr:
    """found[index >> bit], lane by lane: pairs by the lowest of these bits, pairs of pairs by the next."""
    dtype, width = dtype_of(index), 8 if dtype_of(index).startswith("int8") else 32
    while len(found) > 1:
        # The sign bit is what the instructions select by.
        odd = (index << const(width - 1 - bit, dtype)) < const(0, dtype)
        pairs = [found[i : i + 2] for i in range(0, len(found), 2)]
        found = [tirx.Select(odd, pair[1], pair[0]) if len(pair) == 2 else pair[0] for pair in pairs]
        bit += 1
    return found[0]


def _table_lookup(tables: Sequence[Expr], index: Expr) -> Expr:
    """int8 [16]: bytes of tables of 16 on arm64, four at a time; an index beyond them leaves what was found before."""
    found = None
    for begin in range(0, len(tables), 4):
        some = tables[begin : begin + 4]
        place = reinterpret(index - const(16 * begin, "uint8x16") if begin else index, "int8x16")
        name = f"llvm.aarch64.neon.{'tbl' if found is None else 'tbx'}{len(some)}.v16i8"
        found = intrinsic("int8x16", name, *([] if found is None else [found]), *some, place)
    return found


def _lookup_planes(table: Sequence[float], code: Expr, column: int, level: CpuLevel) -> Expr:
    """Longer tables on arm64: first byte 0 of all 16 codes, then byte 1 …, which all four columns share."""
    data = struct.pack(f"<{len(table)}f", *table)
    planes = [lookup_bytes(list(data[byte::4]), code, level, "int8") for byte in range(4)]
    places = _byte_table([16 * byte + 4 * row + column for row in range(4) for byte in range(4)], 16)
    return reinterpret(_table_lookup(planes, reinterpret(places, "uint8x16")), "float32x4")


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
