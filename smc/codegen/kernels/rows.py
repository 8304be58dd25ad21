"""Kernels that work on rows of activations: embedding lookup, norms, quantization, element-wise ops.

Every activation row is padded to a multiple of 32 floats, and the padding holds zeros; so no vector ends early.
A kernel's result leaves as float32, as int8 codes, or both: its `Form`s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import tvm.tirx as tirx

from smc.codegen.kernels.activations import Destination, destination, has_pairs
from smc.codegen.kernels.builder import (
    Expr,
    Kernel,
    Pointer,
    broadcast,
    cast,
    const,
    dtype_of,
    fma,
    intrinsic,
    reinterpret,
    shuffle,
    shuffle_pair,
)
from smc.codegen.kernels.specs import Form
from smc.codegen.kernels.unpack import QUADS, VECTOR_BYTES, cell, scale_place, storage_dtype, tile_place
from smc.codegen.layout import ROW_VECTOR, TILE, planes, span_of, stored_bias
from smc.ir import Encoding
from smc.targets import Level

LANES = 16
"""Vectors here have 16 floats whatever the level: LLVM splits them where registers are narrower."""

LEVEL_TABLE = 128
"""Levels of a codebook that an embedding has in one table."""

SMALLEST = 1e-30
"""Groups of activations with no larger magnitude are rounded to 0 (docs/numerics.md)."""


def horizontal(kernel: Kernel, vector: Expr, combine: Callable[[Expr, Expr], Expr], lanes: int = LANES) -> Expr:
    """All lanes combined in a fixed tree: halves with halves."""
    half = lanes // 2
    while half >= 1:
        vector = kernel.let(vector, "tree")
        vector = combine(shuffle(vector, range(half)), shuffle(vector, range(half, 2 * half)))
        half //= 2
    return kernel.let(vector, "total")


def horizontal_each(kernel: Kernel, vectors: Sequence[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes of every vector combined, in any order: one vector with a segment of equal lanes for each (a power of
    two of them), or the number itself if there is but one."""
    if len(vectors) == 1:
        return horizontal(kernel, vectors[0], combine)
    segment = LANES
    while len(vectors) > 1:
        segment //= 2
        low = [i for i in range(2 * LANES) if i // segment % 2 == 0]
        pairs = [vectors[i : i + 2] for i in range(0, len(vectors), 2)]
        vectors = [
            kernel.let(combine(shuffle_pair(p, low), shuffle_pair(p, [i + segment for i in low])), "tree")
            for p in pairs
        ]
    [vector] = vectors
    while segment > 1:
        segment //= 2
        vector = kernel.let(combine(vector, shuffle(vector, [i ^ segment for i in range(LANES)])), "tree")
    return vector


def _segment(value: Expr, number: int, count: int) -> Expr:
    """What `horizontal_each` gave for one of `count` vectors, in every lane."""
    if count == 1:
        return broadcast(value, LANES)
    size = LANES // count
    return shuffle(value, [number * size + i % size for i in range(LANES)])


def _lane(value: Expr, number: int, count: int) -> Expr:
    """What `horizontal_each` gave for one of `count` vectors, as a number."""
    return value if count == 1 else shuffle(value, [number * LANES // count])


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


def exp(kernel: Kernel, x: Expr, positive: bool = True) -> Expr:
    """e**x of a float32 vector: 2**n times a polynomial on [-ln2/2, ln2/2], within 1 ulp; exp(0) is exactly 1.

    The polynomial is the Taylor expansion to degree 7 (off by 5e-9), and n is added to its exponent; inputs are clamped
    to [-87, 88], where float32 neither vanishes nor overflows. positive: some may be above 0.
    """
    dtype = f"float32x{LANES}"
    x = tirx.min(x, const(88.0, dtype)) if positive else x
    x = kernel.let(tirx.max(x, const(-87.0, dtype)), "x")
    n = kernel.let(intrinsic(dtype, "llvm.nearbyint", x * const(1.4426950408889634, dtype)), "n")
    # ln 2 in two pieces, the first exact in the products with n.
    r = kernel.let(fma(n, const(-0.693145751953125, dtype), x), "r")
    r = kernel.let(fma(n, const(-1.428606765330187e-06, dtype), r), "r")
    polynomial = const(1 / 5040, dtype)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        polynomial = fma(polynomial, r, const(factor, dtype))
    exponent = cast(n, f"int32x{LANES}") << const(23, f"int32x{LANES}")
    return kernel.let(reinterpret(reinterpret(polynomial, f"int32x{LANES}") + exponent, dtype), "exp")


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
                k.store(scales, to[m].scale(tile), _lane(scale, m, count))
            inverses = [_segment(inverse, m, count) for m in range(count)]
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
            inverses = [_segment(inverse, m, len(tokens)) for m in range(len(tokens))]
            if form.group == "token":
                for m, token in enumerate(tokens):
                    k.store(scales, token, _lane(scale, m, len(tokens)))
            with k.loop(tiles, "tile", begin=begin) as tile:
                if form.group != "token":
                    for m, place in enumerate(to):
                        k.store(scales, place.scale(tile), _lane(scale, m, len(tokens)))
                store_codes(k, self.level, form, codes, sums, to, tile, values(tile), inverses)

    def destination(self, form: Form, token: Expr, stride: Expr) -> Destination:
        """Where a token's codes go."""
        return destination(self.kernel, self.level, self.tokens, token, stride, TILE // form.sum_group)


def magnitude(x: Expr) -> Expr:
    """|x| of 16 floats."""
    return intrinsic(f"float32x{LANES}", "llvm.fabs", x)


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
        totals = horizontal_each(k, [low + high for low, high in rounded], _add)
        for m in range(count):
            k.store(sums, to[m].sum(tile), _lane(totals, m, count))
    else:
        for number in range(2):
            totals = horizontal_each(k, [integers[number] for integers in rounded], _add)
            for m in range(count):
                k.store(sums, to[m].sum(tile * 2 + number), _lane(totals, m, count))


def rms_norm_kernel(name: str, forms: Sequence[Form], level: Level) -> Kernel:
    """int32_t name(x, weight, <forms>, tokens, width, stride, eps, begin, end): of `tokens` those from begin to end.

    Rows have `stride` floats. Mean square over the true `width`; x·(1/sqrt(mean + eps)), then times weight, as
    transformers rounds it.
    """
    k = Kernel(name)
    x, weight = k.pointer("x", "float32"), k.pointer("weight", "float32")
    sink = Sink(k, level, forms)
    width, stride, eps = k.scalar("width"), k.scalar("stride"), k.scalar("eps", "float32")
    begin, end = k.scalar("begin"), k.scalar("end")
    stride64 = k.let(cast(stride, "int64"), "stride")
    with k.loop(end - begin, "token", begin=begin) as t:
        token = k.let(cast(t, "int64"), "token")
        start = k.let(token * stride64, "start")
        squares = [k.register(const(0.0, f"float32x{LANES}"), "squares") for _ in range(2)]
        with k.loop(stride64 >> const(5, "int64"), "group") as group:
            for half in range(2):
                value = k.let(x.load(start + group * TILE + half * LANES, LANES), "x")
                k.set(squares[half], fma(value, value, squares[half].value))
        total = horizontal(k, squares[0].value + squares[1].value, _add)
        mean = total / cast(width, "float32")
        factor = k.let(const(1.0, "float32") / intrinsic("float32", "llvm.sqrt", mean + eps), "factor")

        def normed(tile: Expr) -> list[Halves]:
            places = [k.let(tile * TILE + half, "column") for half in (0, LANES)]
            values = [x.load(start + p, LANES) * broadcast(factor, LANES) * weight.load(p, LANES) for p in places]
            return [(k.let(values[0], "normed"), k.let(values[1], "normed"))]

        sink.store([token], stride64, const(0, "int64"), k.let(stride64 >> const(5, "int64"), "tiles"), normed)
    return k


@contextmanager
def _tiles_of_rows(k: Kernel) -> Iterator[tuple[Expr, Expr, Expr]]:
    """Parameters stride, begin, end and a loop over tiles, 32 columns a turn: token, stride, tile."""
    stride, begin, end = k.scalar("stride"), k.scalar("begin"), k.scalar("end")
    stride64 = k.let(cast(stride, "int64"), "stride")
    tiles = k.let(stride >> const(5, "int32"), "tiles")
    first = k.let(begin // tiles, "first")
    with k.loop((end + tiles - 1) // tiles - first, "row", begin=first) as row:
        start = k.let(row * tiles, "start")
        low = k.let(tirx.max(begin - start, const(0, "int32")), "low")
        with k.loop(tirx.min(end - start, tiles) - low, "tile", begin=low) as tile:
            yield k.let(cast(row, "int64"), "token"), stride64, k.let(cast(tile, "int64"), "tile")


def elementwise_kernel(name: str, op: str, forms: Sequence[Form], level: Level) -> Kernel:
    """int32_t name(a[, b], <forms>, tokens, stride, begin, end): tiles of 32 columns, token by token.

    op: "add", "mul", "silu", "gated_silu" (silu(a)·b), or "copy" (which quantizes where forms say so).
    """
    k = Kernel(name)
    operands = [k.pointer(operand, "float32") for operand in _operands(op)]
    sink = Sink(k, level, forms)
    assert not sink.wide, "tiles of a group may be computed by several calls"
    with _tiles_of_rows(k) as (token, stride, tile):
        place = k.let(token * stride + tile * TILE, "place")
        low, high = (_values(k, op, operands, place + offset) for offset in (0, LANES))
        sink.store_tile([token], stride, tile, [(low, high)])
    return k


def chained_kernel(name: str, op: str, forms: Sequence[Form], level: Level) -> Kernel:
    """int32_t name(a[, b], <forms>, tokens, stride, first, count, begin, end): as `elementwise_kernel`, but for the
    tiles begin…end, whole groups of codes, of the tokens first…first+count of a step of `tokens`. a and b hold these
    alone; a is overwritten.

    The op goes first through all vectors, which don't wait for each other. Then the results are stored; where registers
    allow it several tokens together, so that they share the shuffles of their maxima and sums.
    """
    k = Kernel(name)
    operands = [k.pointer(operand, "float32") for operand in _operands(op)]
    sink = Sink(k, level, forms)
    stride = k.let(cast(k.scalar("stride"), "int64"), "stride")
    first, count = (k.scalar(name) for name in ("first", "count"))
    begin, end = k.scalar("begin"), k.scalar("end")
    width = k.let(cast(end - begin, "int64") * TILE, "width")
    with k.loop(cast(count, "int64") * (width >> const(4, "int64")), "vector") as vector:
        k.store(operands[0], vector * LANES, _values(k, op, operands, vector * LANES))
    done = const(0, "int32")
    for step in sorted({max(1, level.registers * level.lanes // (4 * TILE)), 1}, reverse=True):
        turns = k.let((count - done) // const(step, "int32"), "turns")
        with k.loop(turns, "turn") as turn:
            rows = [k.let(cast(done + turn * step + m, "int64"), "row") for m in range(step)]
            # As if the rows were whole.
            starts = [k.let(row * width - cast(begin, "int64") * TILE, "start") for row in rows]
            tokens = [k.let(cast(first, "int64") + row, "token") for row in rows]
            load = functools.partial(_tile_of_rows, k, operands[0], starts)
            sink.store(tokens, stride, k.let(cast(begin, "int64"), "begin"), k.let(cast(end - begin, "int64")), load)
        done = k.let(done + turns * step, "done")
    return k


def _tile_of_rows(k: Kernel, x: Pointer, starts: Sequence[Expr], tile: Expr) -> list[Halves]:
    """A tile of the rows that begin at `starts`."""
    places = [k.let(start + tile * TILE, "place") for start in starts]
    return [(k.let(x.load(p, LANES), "low"), k.let(x.load(p + LANES, LANES), "high")) for p in places]


def _operands(op: str) -> str:
    """The names of an element-wise op's operands."""
    return "ab" if op in ("add", "mul", "gated_silu") else "a"


def _values(k: Kernel, op: str, operands: Sequence[Pointer], place: Expr) -> Expr:
    """An element-wise op's results for the 16 columns at `place`."""
    value, *others = [k.let(operand.load(place, LANES), "operand") for operand in operands]
    if op in ("silu", "gated_silu"):
        one = const(1.0, f"float32x{LANES}")
        value = k.let(value / (one + exp(k, const(0.0, f"float32x{LANES}") - value)), "silu")
    for other in others:
        value = value + other if op == "add" else value * other
    return k.let(value, "value")


def quantize_tokens_kernel(name: str, form: Form, level: Level) -> Kernel:
    """int32_t name(x, codes, scales, sums, tokens, stride, begin, end): one scale a token, or for several tiles."""
    k = Kernel(name)
    x = k.pointer("x", "float32")
    sink = Sink(k, level, [form])
    stride, begin, end = k.scalar("stride"), k.scalar("begin"), k.scalar("end")
    stride64 = k.let(cast(stride, "int64"), "stride")
    tiles = k.let(stride64 >> const(5, "int64"), "tiles")
    with k.loop(end - begin, "token", begin=begin) as t:
        token = k.let(cast(t, "int64"), "token")
        load = functools.partial(_tile_of_rows, k, x, [k.let(token * stride64, "start")])
        sink.store([token], stride64, const(0, "int64"), tiles, load)
    return k


def embedding_kernel(name: str, encoding: Encoding, family: str) -> Kernel:
    """int32_t name(tokens, codes, scales, zeros, out, rows, columns, stride, begin, end): rows of the packed table.

    out: float32 [tokens, stride], the padding set to 0. rows: padded rows of the table, columns: its true width.
    """
    k = Kernel(name)
    tokens = k.pointer("tokens", "int32")
    codes = k.pointer("codes", storage_dtype(encoding.storage) if encoding.is_float else "uint8")
    scales = k.pointer("scales", storage_dtype(encoding.scale_dtype))
    zeros, out = k.pointer("zeros", "uint8"), k.pointer("out", "float32")
    rows, columns, stride = k.scalar("rows"), k.scalar("columns"), k.scalar("stride")
    begin, end = k.scalar("begin"), k.scalar("end")
    width, stride64 = k.let(cast(columns, "int64"), "width"), k.let(cast(stride, "int64"), "stride")
    with k.loop(end - begin, "token", begin=begin) as t:
        start = k.let(cast(t, "int64") * stride64, "start")
        row = k.let(cast(tokens.load(t), "int64"), "row")
        vector, lane = k.let(row // ROW_VECTOR, "vector"), k.let(row % ROW_VECTOR, "lane")
        if encoding.is_float:
            with k.loop(width, "column") as column:
                value = codes.load(cell(vector, column, width) * ROW_VECTOR + lane)
                if encoding.storage == "bf16":
                    value = reinterpret(cast(value, "uint32") << const(16, "uint32"), "float32")
                k.store(out, start + column, cast(value, "float32"))
        else:
            _decode_row(k, encoding, family, codes, scales, zeros, out, vector, lane, start, width, cast(rows, "int64"))
        with k.loop(stride64 - width, "column", begin=width) as column:
            k.store(out, start + column, const(0.0, "float32"))
    return k


def _decode_row(
    k: Kernel,
    encoding: Encoding,
    family: str,
    codes: Pointer,
    scales: Pointer,
    zeros: Pointer,
    out: Pointer,
    vector: Expr,
    lane: Expr,
    start: Expr,
    width: Expr,
    rows: Expr,
) -> None:
    """Codes of one row, four neighbouring columns at a time; columns beyond a padded tile overwrite only padding."""
    tiles = k.let((width + const(TILE - 1, "int64")) // TILE, "tiles")
    size = encoding.group_size(0) if isinstance(encoding.group, int) else 0
    groups = k.let((tiles * TILE + const(size - 1, "int64")) // size, "groups") if size else const(1, "int64")
    per_scale = const(encoding.super_group or 1, "int64")
    super_groups = k.let((groups + per_scale - const(1, "int64")) // per_scale, "super_groups")
    levels = _level_tables(k, encoding)
    with k.loop(tiles, "tile") as tile:
        place = tile_place(k, encoding, vector, tile, tiles)
        base = k.let(place.begin + lane * 4, "base")
        power = None if place.digit is None else k.let(place.power(), "power")
        for quad in range(QUADS):
            column = k.let(tile * TILE + quad * 4, "column")
            if place.digit is not None:
                code = _base3_codes(codes.load(base + quad * VECTOR_BYTES, 4), power)
            else:
                code = _packed_codes(encoding, family, codes, base, quad)
            group = k.let(column // size, "group") if size else const(0, "int64")
            index = k.let(cell(vector, group, groups) * ROW_VECTOR + lane, "index")
            outer = cell(vector, group // per_scale, super_groups) * ROW_VECTOR + lane
            if span_of(encoding):
                outer = scale_place(encoding, vector, group, tiles) + lane
            number, begin = _scalar_float(scales, outer), lane
            if encoding.super_group is not None:
                number = number * cast(cast(zeros.load(index), "int32"), "float32")
                begin = lane + rows * groups  # of the zeros, behind the codes of the scales
            scale = broadcast(k.let(number, "scale"), 4)
            value = _decode_codes(k, encoding, levels, code, zeros, vector, groups, group, begin)
            if encoding.offset:
                behind = index + rows * super_groups
                if span_of(encoding):
                    behind = scale_place(encoding, vector, group, tiles, part=1) + lane
                offset = k.let(_scalar_float(scales, behind), "offset")
                value = fma(value, scale, broadcast(offset, 4))
            else:
                value = value * scale
            k.store(out, start + column, value)


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
    """int32 [4]: a digit of four bytes of base 3, as fractions of 256 (smc.codegen.layout)."""
    fraction = (cast(stored, "int32x4") * broadcast(power, 4)) & const(0xFF, "int32x4")
    return (fraction * const(3, "int32x4")) >> const(8, "int32x4")


def _scalar_float(pointer: Pointer, index: Expr) -> Expr:
    value = pointer.load(index)
    if pointer.dtype == "uint16":
        return reinterpret(cast(value, "uint32") << const(16, "uint32"), "float32")
    return cast(value, "float32")


def _level_tables(k: Kernel, encoding: Encoding) -> list[Pointer]:
    """The codebook in memory, in tables of 128 levels."""
    levels, tables = encoding.levels or (), []
    for begin in range(0, len(levels), LEVEL_TABLE):
        part = levels[begin : begin + LEVEL_TABLE]
        tables.append(k.array("float32", LEVEL_TABLE, "levels"))
        for place, level in enumerate(part):
            k.store(tables[-1], const(place, "int64"), const(level, "float32"))
    return tables


def _decode_codes(
    k: Kernel,
    encoding: Encoding,
    levels: Sequence[Pointer],
    code: Expr,
    zeros: Pointer,
    vector: Expr,
    groups: Expr,
    group: Expr,
    lane: Expr,
) -> Expr:
    """float32 [4]: codes minus zero, or their levels. lane: where zeros begin, and the row in its row vector."""
    if levels:
        code = k.let(code, "code")
        values = [table.load(code & const(LEVEL_TABLE - 1, "int32x4")) for table in levels]
        if len(values) == 1:
            return k.let(values[0], "level")
        return k.let(tirx.Select(code < const(LEVEL_TABLE, "int32x4"), values[0], values[1]), "level")
    if encoding.zero == "group":
        if encoding.zero_bits == 8:
            zero = cast(zeros.load(cell(vector, group, groups) * ROW_VECTOR + lane), "int32")
        else:
            one = const(1, "int64")
            byte = zeros.load(cell(vector, group >> one, (groups + one) >> one) * ROW_VECTOR + lane)
            zero = (cast(byte, "int32") >> cast((group & one) * const(4, "int64"), "int32")) & const(15, "int32")
        code = code - broadcast(k.let(zero, "zero"), 4)
    elif encoding.zero:
        code = code - const(int(encoding.zero), "int32x4")
    return cast(code, "float32x4")
