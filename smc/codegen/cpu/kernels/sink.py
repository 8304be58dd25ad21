"""Sink: where kernels that work on rows of activations leave their results, as float32, as int8 codes, or both.

Rounding to int8 is that of docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Kernel, Pointer, cast, const, dtype_of, intrinsic, rounded_product, shuffle
from smc.codegen.cpu.isa import isa
from smc.codegen.cpu.kernels.activations import Destination, destination, has_pairs
from smc.codegen.cpu.kernels.transform import butterflies
from smc.codegen.cpu.kernels.vector_math import LANES, add, horizontal_each, lane, magnitude, nearest, segment
from smc.codegen.kernels.abi import Form
from smc.codegen.kernels.layout import TILE
from smc.targets import CpuLevel

SMALLEST = 1e-30
"""Groups of activations with no larger magnitude are rounded to 0 (docs/numerics.md)."""


Halves = tuple[Expr, Expr]
"""32 columns of a row: two vectors of 16 floats."""


class Sink:
    """Where a row kernel puts its results: the pointers of every form, and code that stores columns."""

    def __init__(self, kernel: Kernel, level: CpuLevel, forms: Sequence[Form]) -> None:
        self.kernel = kernel
        self.floats: Pointer | None = None
        self.codes: list[_CodesSink] = []
        for place, form in enumerate(forms):
            if form.kind == "f32":
                self.floats = kernel.pointer("out")
            else:
                self.codes.append(_CodesSink(kernel, level, form, place))
        self.wide = [codes for codes in self.codes if codes.form.group != TILE]
        self.tokens = kernel.scalar("tokens")

    def store(
        self,
        tokens: Sequence[Expr],
        stride: Expr,
        first: Expr,
        count: Expr,
        values: Callable[[Expr], Sequence[Halves]],
    ) -> None:
        """The tiles first…first+count (32 columns each, int64) of some tokens' rows of `stride` floats.

        Groups of codes begin at first. values: a tile's number → its columns in every token's row; each form calls it,
        so it computes them again.
        """
        k = self.kernel
        if len(self.wide) < len(self.codes) or self.floats is not None:
            with k.loop(count, "tile", begin=first) as tile:
                self.store_tile(tokens, stride, tile, values(tile))
        for codes in self.wide:
            codes.store_groups(codes.destinations(self.tokens, tokens, stride), tokens, first, count, values)

    def store_tile(self, tokens: Sequence[Expr], stride: Expr, tile: Expr, halves: Sequence[Halves]) -> None:
        """Store one tile in all forms whose groups are no wider than a tile."""
        k, count = self.kernel, len(tokens)
        if self.floats is not None:
            column = k.let(tile * TILE, "column")
            for token, (low, high) in zip(tokens, halves, strict=True):
                place = k.let(token * stride + column, "place")
                k.store(self.floats, place, low)
                k.store(self.floats, place + LANES, high)
        for codes in self.codes:
            if codes in self.wide:
                continue
            columns = codes.turned(halves)
            largest = [k.let(tirx.max(magnitude(low), magnitude(high)), "largest") for low, high in columns]
            scale, inverse = symmetric_scale(k, horizontal_each(k, largest, tirx.max))
            to = codes.destinations(self.tokens, tokens, stride)
            for m in range(count):
                k.store(codes.scales, to[m].scale(tile), lane(scale, m, count))
            codes.store_codes(to, tile, columns, [segment(inverse, m, count) for m in range(count)])


class _CodesSink:
    """The results as int8 codes of one form, the kernel's number `place`."""

    def __init__(self, kernel: Kernel, level: CpuLevel, form: Form, place: int) -> None:
        self.kernel, self.level, self.form = kernel, level, form
        self.codes = kernel.pointer(f"codes_{place}")
        self.scales = kernel.pointer(f"scales_{place}")
        self.sums = kernel.pointer(f"sums_{place}")

    def destinations(self, step: Expr, tokens: Sequence[Expr], stride: Expr) -> list[Destination]:
        """The places of some tokens' codes, in a step of so many tokens (int32)."""
        per_tile = TILE // self.form.sum_group
        return [destination(self.kernel, self.level, step, token, stride, per_tile) for token in tokens]

    def turned(self, halves: Sequence[Halves]) -> Sequence[Halves]:
        """The columns of a tile as they are rounded: times a Hadamard matrix where the form says so."""
        if self.form.rotation is None:
            return halves
        k, root = self.kernel, const(self.form.rotation**-0.5, f"float32x{LANES}")
        result = []
        for half in halves:
            low, high = (butterflies(k, rounded_product(columns, root), LANES) for columns in half)
            result.append((k.let(low + high, "low"), k.let(low - high, "high")))
        return result

    def store_groups(
        self,
        to: Sequence[Destination],
        tokens: Sequence[Expr],
        first: Expr,
        count: Expr,
        values: Callable[[Expr], Sequence[Halves]],
    ) -> None:
        """As `Sink.store`, for groups of several tiles or whole rows: first their largest magnitudes, then codes."""
        k, group_size = self.kernel, self.form.group
        size = count if group_size == "token" else const(group_size // TILE, "int64")
        with k.loop(k.let((count + size - const(1, "int64")) // size, "groups"), "group") as group:
            begin = k.let(first + group * size, "begin")
            tiles = k.let(tirx.min(first + count - begin, size), "tiles")
            largest = [k.register(const(0.0, f"float32x{LANES}"), "largest") for _ in tokens]
            with k.loop(tiles, "tile", begin=begin) as tile:
                for register, (low, high) in zip(largest, self.turned(values(tile)), strict=True):
                    k.set(register, tirx.max(register.value, tirx.max(magnitude(low), magnitude(high))))
            scale, inverse = symmetric_scale(k, horizontal_each(k, [r.value for r in largest], tirx.max))
            inverses = [segment(inverse, m, len(tokens)) for m in range(len(tokens))]
            if group_size == "token":
                for m, token in enumerate(tokens):
                    k.store(self.scales, token, lane(scale, m, len(tokens)))
            with k.loop(tiles, "tile", begin=begin) as tile:
                if group_size != "token":
                    for m, place in enumerate(to):
                        k.store(self.scales, place.scale(tile), lane(scale, m, len(tokens)))
                self.store_codes(to, tile, self.turned(values(tile)), inverses)

    def store_codes(
        self, to: Sequence[Destination], tile: Expr, halves: Sequence[Halves], inverses: Sequence[Expr]
    ) -> None:
        """Round the 32 columns of a tile half to even, for some tokens; store the codes and their sums."""
        k = self.kernel
        halves_per_sum = self.form.sum_group // LANES
        sums: list[list[Expr]] = [[] for _ in range(TILE // self.form.sum_group)]
        for place, columns, inverse in zip(to, halves, inverses, strict=True):
            total = None
            for number, half in enumerate(columns):
                integers = k.let(nearest(self.level, half * inverse), "code")
                stored = k.let(cast(integers, f"int8x{LANES}"), "bytes")
                if has_pairs(self.level):
                    for chunk in range(2):
                        eight = shuffle(stored, range(8 * chunk, 8 * chunk + 8))
                        k.store(self.codes, place.code(tile, 2 * number + chunk), eight)
                else:
                    k.store(self.codes, place.code(tile, 2 * number), stored)
                total = self._add_codes(total if number % halves_per_sum else None, integers, stored)
                if (number + 1) % halves_per_sum == 0:
                    sums[number // halves_per_sum].append(total)
        for number, vectors in enumerate(sums):
            totals = horizontal_each(k, vectors, add)
            for m in range(len(to)):
                k.store(self.sums, to[m].sum(tile * len(sums) + number), lane(totals, m, len(to)))

    def _add_codes(self, total: Expr | None, integers: Expr, stored: Expr) -> Expr:
        """16 codes, as int32 and as int8, added to a vector of int32 (None: zeros): four to a lane in one instruction
        where the level has dot products."""
        if not isa(self.level).has_byte_dot:
            return integers if total is None else self.kernel.let(total + integers, "total")
        ones, zeros = const(1, f"int8x{LANES}"), const(0, "int32x4")
        x86 = self.level.family == "x86"
        name = "llvm.x86.avx512.vpdpbusd.128" if x86 else "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return self.kernel.let(intrinsic("int32x4", name, zeros if total is None else total, ones, stored), "total")


def symmetric_scale(kernel: Kernel, amax: Expr) -> tuple[Expr, Expr]:
    """scale = amax / 127 and its inverse 127 / amax, 0 where amax is so small that it might overflow."""
    dtype = dtype_of(amax)
    scale = kernel.let(amax / const(127.0, dtype), "scale")
    inverse = tirx.Select(amax > const(SMALLEST, dtype), const(127.0, dtype) / amax, const(0.0, dtype))
    return scale, kernel.let(inverse, "inverse")
