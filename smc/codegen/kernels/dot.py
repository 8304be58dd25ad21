"""Dot: feature level → integer dot products of unsigned codes with signed int8 inputs, knowing no encoding."""

from __future__ import annotations

from smc.codegen.kernels.builder import Expr, Kernel, broadcast, const, intrinsic, reinterpret
from smc.targets import Level


def dot_bias(level: Level, bits: int) -> int:
    """What `dot_quad` subtracts from every code by itself; the zero to correct by is smaller by it."""
    return 128 if level.dot == "vpmaddubsw" and bits == 8 else 0


def prepare_codes(kernel: Kernel, level: Level, bits: int, codes: Expr) -> Expr:
    """Work on a vector of codes that is the same for all tokens; give the result to dot_quad."""
    if dot_bias(level, bits):
        lanes = 4 * level.lanes
        return kernel.let(reinterpret(codes ^ const(128, f"uint8x{lanes}"), f"int8x{lanes}"), "signed")
    return reinterpret(codes, f"int8x{4 * level.lanes}")


def dot_quad(kernel: Kernel, level: Level, bits: int, accumulator: Expr, codes: Expr, inputs: Expr) -> Expr:
    """accumulator int32 [lanes] + for every lane the dot of its four codes with four int8 inputs, exact.

    inputs: int32 scalar holding four int8, the same for all lanes. bits: how many bits the codes use.
    """
    lanes = level.lanes
    quads = reinterpret(broadcast(inputs, lanes), f"int8x{4 * lanes}")
    if level.dot == "vpdpbusd":
        return intrinsic(f"int32x{lanes}", f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", accumulator, codes, quads)
    assert level.dot == "vpmaddubsw" and lanes == 8
    if bits == 8:
        # Two products of a full unsigned code would saturate int16. |code - 128| * ±input does not: 2 * 128 * 127.
        quads = intrinsic("int8x32", "llvm.x86.avx2.psign.b", quads, codes)
        codes = intrinsic("int8x32", "llvm.x86.avx2.psign.b", codes, codes)
    pairs = intrinsic("int16x16", "llvm.x86.avx2.pmadd.ub.sw", codes, quads)
    return accumulator + intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, const(1, "int16x16"))
