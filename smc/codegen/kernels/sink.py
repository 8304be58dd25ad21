"""Sink: where kernels that work on rows of activations leave their results, as float32, as int8 codes, or both.

Rounding to int8 is that of docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm.tirx as tirx

from smc.codegen.kernels.activations import Destination, destination, has_pairs
from smc.codegen.kernels.builder import Expr, Kernel, Pointer, cast, const, dtype_of, intrinsic, shuffle
from smc.codegen.kernels.specs import Form
from smc.codegen.kernels.vector_math import LANES, add, horizontal_each, lane, magnitude, segment
from smc.codegen.layout import TILE
from smc.targets import Level

SMALLEST = 1e-30
"""Groups of activations with no larger magnitude are rounded to 0 (docs/numerics.md)."""


Halves = tuple[Expr, Expr]
"""32 columns of a row: two vectors of 16 floats."""


class Sink:
    """Where a row kernel puts its results: pointer parameters for every form, and the code that stores columns."""

    def __init__(self, kernel: Kernel, level: Level, forms: Sequence[Form]) -> None:
        self.kernel, self.level = kernel, level
        self.floats: Pointer | None = None
        self.codes: list[tuple[Form, Pointer, Pointer, Pointer]] = []
        self.wide = [form for form in forms if form.group != TILE]
        for place, form in enumerate(forms):
            if form.kind == "f32":
                self.floats = kernel.pointer("out", "float32")
            else:
                pointers = [
                    kernel.pointer(f"{n}_{place}", d)
                    for n, d in (("codes", "int8"), ("scales", "float32"), ("sums", "int32"))
                ]
                self.codes.append((form, pointers[0], pointers[1], pointers[2]))
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

        Groups of codes begin at first. values: a tile's number → its columns in every token's row; called, and so
        computed, for each way in which results leave.
        """
        k = self.kernel
        if len(self.wide) < len(self.codes) or self.floats is not None:
            with k.loop(count, "tile", begin=first) as tile:
                self.store_tile(tokens, stride, tile, values(tile))
        for form, codes, scales, sums in self.codes:
            if form.group != TILE:
                to = [self.destination(form, token, stride) for token in tokens]
                self._store_groups(form, codes, scales, sums, to, tokens, first, count, values)

    def store_tile(self, tokens: Sequence[Expr], stride: Expr, tile: Expr, halves: Sequence[Halves]) -> None:
        """One tile, in all forms but those whose groups are wider."""
        k, count = self.kernel, len(tokens)
        if self.floats is not None:
            column = k.let(tile * TILE, "column")
            for token, (low, high) in zip(tokens, halves, strict=True):
                place = k.let(token * stride + column, "place")
                k.store(self.floats, place, low)
                k.store(self.floats, place + LANES, high)
        for form, codes, scales, sums in self.codes:
            if form.group != TILE:
                continue
            largest = [k.let(tirx.max(magnitude(low), magnitude(high)), "largest") for low, high in halves]
            scale, inverse = symmetric_scale(k, horizontal_each(k, largest, tirx.max))
            to = [self.destination(form, token, stride) for token in tokens]
            for m in range(count):
                k.store(scales, to[m].scale(tile), lane(scale, m, count))
            inverses = [segment(inverse, m, count) for m in range(count)]
            store_codes(k, self.level, form, codes, sums, to, tile, halves, inverses)

    def _store_groups(
        self,
        form: Form,
        codes: Pointer,
        scales: Pointer,
        sums: Pointer,
        to: Sequence[Destination],
        tokens: Sequence[Expr],
        first: Expr,
        count: Expr,
        values: Callable[[Expr], Sequence[Halves]],
    ) -> None:
        """Codes whose groups are several tiles, or the row: first the largest magnitudes, then the codes."""
        k = self.kernel
        size = count if form.group == "token" else const(form.group // TILE, "int64")
        with k.loop(k.let((count + size - const(1, "int64")) // size, "groups"), "group") as group:
            begin = k.let(first + group * size, "begin")
            tiles = k.let(tirx.min(first + count - begin, size), "tiles")
            largest = [k.register(const(0.0, f"float32x{LANES}"), "largest") for _ in tokens]
            with k.loop(tiles, "tile", begin=begin) as tile:
                for register, (low, high) in zip(largest, values(tile), strict=True):
                    k.set(register, tirx.max(register.value, tirx.max(magnitude(low), magnitude(high))))
            scale, inverse = symmetric_scale(k, horizontal_each(k, [r.value for r in largest], tirx.max))
            inverses = [segment(inverse, m, len(tokens)) for m in range(len(tokens))]
            if form.group == "token":
                for m, token in enumerate(tokens):
                    k.store(scales, token, lane(scale, m, len(tokens)))
            with k.loop(tiles, "tile", begin=begin) as tile:
                if form.group != "token":
                    for m, place in enumerate(to):
                        k.store(scales, place.scale(tile), lane(scale, m, len(tokens)))
                store_codes(k, self.level, form, codes, sums, to, tile, values(tile), inverses)

    def destination(self, form: Form, token: Expr, stride: Expr) -> Destination:
        """Where a token's codes go."""
        return destination(self.kernel, self.level, self.tokens, token, stride, TILE // form.sum_group)


def symmetric_scale(kernel: Kernel, amax: Expr) -> tuple[Expr, Expr]:
    """scale = amax / 127 and its inverse 127 / amax, 0 where amax is so small that it might overflow."""
    dtype = dtype_of(amax)
    scale = kernel.let(amax / const(127.0, dtype), "scale")
    inverse = tirx.Select(amax > const(SMALLEST, dtype), const(127.0, dtype) / amax, const(0.0, dtype))
    return scale, kernel.let(inverse, "inverse")


def store_codes(
    kernel: Kernel,
    level: Level,
    form: Form,
    codes: Pointer,
    sums: Pointer,
    to: Sequence[Destination],
    tile: Expr,
    halves: Sequence[Halves],
    inverses: Sequence[Expr],
) -> None:
    """Round the 32 columns of a tile half to even, for some tokens; store the codes and their sums."""
    k, vector, count = kernel, f"int32x{LANES}", len(to)
    rounded: list[list[Expr]] = []
    for place, columns, inverse in zip(to, halves, inverses, strict=True):
        rounded.append([])
        for number, half in enumerate(columns):
            scaled = half * inverse
            integers = k.let(cast(intrinsic(f"float32x{LANES}", "llvm.nearbyint", scaled), vector), "code")
            stored = k.let(cast(integers, f"int8x{LANES}"), "bytes")
            if has_pairs(level):
                for chunk in range(2):
                    eight = shuffle(stored, range(8 * chunk, 8 * chunk + 8))
                    k.store(codes, place.code(tile, 2 * number + chunk), eight)
            else:
                k.store(codes, place.code(tile, 2 * number), stored)
            rounded[-1].append(integers)
    if form.sum_group == TILE:
        totals = horizontal_each(k, [low + high for low, high in rounded], add)
        for m in range(count):
            k.store(sums, to[m].sum(tile), lane(totals, m, count))
    else:
        for number in range(2):
            totals = horizontal_each(k, [integers[number] for integers in rounded], add)
            for m in range(count):
                k.store(sums, to[m].sum(tile * 2 + number), lane(totals, m, count))
