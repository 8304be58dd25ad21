"""Attention: rotary embedding with the write into the KV cache, and online-softmax attention over its pages.

KV pages (program.h): for every layer and KV head, K as [64/16][padded head_dim][16 tokens], then V as
[64][padded head_dim]. So the lanes of a score vector are 16 tokens, and those of an output vector are channels: nothing
is reduced across lanes but the softmax's maximum and sum.
Online softmax page by page after Milakov & Gimelshein, "Online normalizer calculation for softmax" (2018). Pages lie at
fixed cache indices, so the arithmetic of a token does not depend on which others are in the step.
"""

from __future__ import annotations

import tvm.tirx as tirx

from smc.codegen.kernels.builder import (
    Expr,
    Kernel,
    Pointer,
    Register,
    broadcast,
    cast,
    const,
    dtype_of,
    fma,
    rounded_product,
)
from smc.codegen.kernels.rows import LANES, exp, horizontal
from smc.codegen.kernels.specs import AttentionShape
from smc.targets import Level

PAGE_TOKENS = 64
TILE_FIELDS = 4
MASKED, LOWEST = -3.0e38, -1.0e30
"""Score of a masked token, and the first running maximum: their difference underflows to 0 in exp."""


def rope_kernel(name: str, shape: AttentionShape) -> Kernel:
    """int32_t name(q, k, v, rope, slots, cache, tokens, q_stride, kv_stride, page, layer, begin, end)

    Blocks are (token, KV head): rotates the head's group of q in place, rotates k and writes k and v into the cache.
    rope: float32 [tokens][2][head_dim/2] cosines and sines; slots: int32 [tokens]; cache: all pages; page: elements of
    a page (int64); layer: elements from a page's begin to this layer's.
    """
    k = Kernel(name)
    q, key, value = (k.pointer(n, "float32") for n in ("q", "k", "v"))
    rope, slots = k.pointer("rope", "float32"), k.pointer("slots", "int32")
    cache = k.pointer("cache", {"f16": "float16", "f32": "float32"}[shape.kv_dtype])
    q_stride, kv_stride = k.scalar("q_stride"), k.scalar("kv_stride")
    page, layer = k.scalar("page", "int64"), k.scalar("layer", "int64")
    begin, end = k.scalar("begin"), k.scalar("end")
    half, group = shape.head_dim // 2, shape.heads // shape.kv_heads
    with k.loop(end - begin, "block", begin=begin) as block:
        token = k.let(cast(block // shape.kv_heads, "int64"), "token")
        head = k.let(cast(block % shape.kv_heads, "int64"), "head")
        cosines = k.let(token * (2 * half), "cosines")
        if shape.rotary:
            first = k.let(token * cast(q_stride, "int64") + head * (group * shape.head_dim), "first")
            with k.loop(const(group, "int64"), "q_head") as h:
                _rotate(k, q, k.let(first + h * shape.head_dim, "start"), rope, cosines, half)
        source = k.let(token * cast(kv_stride, "int64") + head * shape.head_dim, "source")
        if shape.rotary:
            _rotate(k, key, source, rope, cosines, half)
        slot = k.let(cast(slots.load(token), "int64"), "slot")
        place = k.let(slot % PAGE_TOKENS, "place")
        base = k.let((slot // PAGE_TOKENS) * page + layer + head * shape.page_head, "base")
        k_base = k.let(base + (place // LANES) * (shape.padded_dim * LANES) + place % LANES, "k_base")
        v_base = k.let(base + PAGE_TOKENS * shape.padded_dim + place * shape.padded_dim, "v_base")
        with k.loop(const(shape.head_dim, "int64"), "d") as d:
            k.store(cache, k_base + d * LANES, cast(key.load(source + d), cache.dtype))
            k.store(cache, v_base + d, cast(value.load(source + d), cache.dtype))
    return k


def _rotate(k: Kernel, x: Pointer, start: Expr, rope: Pointer, cosines: Expr, half: int) -> None:
    """(x1, x2) → (x1·cos − x2·sin, x2·cos + x1·sin) for the two halves of a head, in place."""
    lanes = next(n for n in (16, 8, 4, 2, 1) if half % n == 0)
    with k.loop(const(half // lanes, "int64"), "pair") as i:
        offset = k.let(i * lanes, "offset")
        cosine = k.let(rope.load(cosines + offset, lanes), "cos")
        sine = k.let(rope.load(cosines + offset + half, lanes), "sin")
        low, high = k.let(x.load(start + offset, lanes), "low"), k.let(x.load(start + offset + half, lanes), "high")
        zero = const(0.0, dtype_of(low))
        k.store(x, start + offset, fma(low, cosine, zero - high * sine))
        k.store(x, start + offset + half, fma(high, cosine, low * sine))


def attention_kernel(name: str, shape: AttentionShape, level: Level) -> Kernel:
    """int32_t name(q, cache, tables, tiles, out, scratch, stride, page, layer, scale, window, begin, end)

    Blocks are (tile, KV head). tiles: int32 [n][4] token, count, table, index (program.h); tables: page numbers.
    q, out: float32 [tokens, stride]; a token at cache index i sees indices i-window < j <= i (window 0: all).
    The last KV head's block also clears the padding of `out`.
    """
    return _Attention(name, shape, level).build()


class _Attention:
    def __init__(self, name: str, shape: AttentionShape, level: Level) -> None:
        self.shape = shape
        self.rows = 4 if level.registers >= 32 else 2
        k = self.k = Kernel(name)
        self.q = k.pointer("q", "float32")
        self.cache = k.pointer("cache", {"f16": "float16", "f32": "float32"}[shape.kv_dtype])
        self.tables, self.tiles = k.pointer("tables", "int32"), k.pointer("tiles", "int32")
        self.out, self.scratch = k.pointer("out", "float32"), k.pointer("scratch", "float32")
        self.stride = k.scalar("stride")
        self.page, self.layer = k.scalar("page", "int64"), k.scalar("layer", "int64")
        self.scale, self.window = k.scalar("scale", "float32"), k.scalar("window")
        self.begin, self.end = k.scalar("begin"), k.scalar("end")

    def build(self) -> Kernel:
        k, shape = self.k, self.shape
        group = shape.heads // shape.kv_heads
        stride = self.stride64 = k.let(cast(self.stride, "int64"), "stride")
        with k.loop(self.end - self.begin, "block", begin=self.begin) as block:
            tile = k.let(block // shape.kv_heads * TILE_FIELDS, "tile")
            self.head = k.let(cast(block % shape.kv_heads, "int64"), "head")
            self.token, count, table, index = (
                k.let(cast(self.tiles.load(tile + f), "int64"), n)
                for f, n in enumerate(("token", "count", "table", "index"))
            )
            self.table, self.index = table, index
            rows = k.let(count * group, "rows")
            with k.loop((rows + const(self.rows - 1, "int64")) // self.rows, "row_block") as row_block:
                self._row_block(k.let(row_block * self.rows, "first"), rows, group)
            with k.when(self.head == const(shape.kv_heads - 1, "int64")):
                width = shape.heads * shape.head_dim
                with k.loop(count, "t") as t, k.loop(stride - width, "pad", begin=const(width, "int64")) as pad:
                    k.store(self.out, (self.token + t) * stride + pad, const(0.0, "float32"))
        return k

    def _row_block(self, first: Expr, rows: Expr, group: int) -> None:
        """A few rows (token, head of the group) at once; rows beyond the last repeat it and give the same result."""
        k, shape, vector = self.k, self.shape, f"float32x{LANES}"
        last = rows - 1
        row = [k.let(tirx.min(first + r, last), "row") for r in range(self.rows)]
        tokens = [k.let(r // group, "token") for r in row]
        self.starts = [
            k.let((self.token + t) * self.stride64 + (self.head * group + r % group) * shape.head_dim, "start")
            for r, t in zip(row, tokens, strict=True)
        ]
        self.ends = [k.let(self.index + t + 1, "end") for t in tokens]  # sees cache indices below
        window = k.let(cast(self.window, "int64"), "window")
        zero = const(0, "int64")
        begins = [tirx.Select(window > zero, tirx.max(end - window, zero), zero) for end in self.ends]
        self.begins = [k.let(b, "begin") for b in begins]
        self.maxima = [k.register(const(LOWEST, "float32"), "maximum") for _ in row]
        self.sums = [k.register(const(0.0, vector), "sum") for _ in row]
        self.outputs = self.rows * PAGE_TOKENS  # where in the scratch the output rows lie
        with k.loop(const(self.rows * shape.padded_dim // LANES, "int64"), "v") as v:
            k.store(self.scratch, v * LANES + self.outputs, const(0.0, vector))
        # Rows come in token order: the first begins earliest, the last ends latest.
        first_page, end = k.let(self.begins[0] // PAGE_TOKENS, "first_page"), self.ends[-1]
        pages = k.let((end + const(PAGE_TOKENS - 1, "int64")) // PAGE_TOKENS - first_page, "pages")
        with k.loop(pages, "page", begin=first_page) as page:
            self._page(page, end)
        for r, start in enumerate(self.starts):
            inverse = k.let(const(1.0, "float32") / horizontal(k, self.sums[r].value, lambda a, b: a + b), "inverse")
            self._store_row(r, start, inverse)

    def _store_row(self, r: int, start: Expr, inverse: Expr) -> None:
        k, shape = self.k, self.shape
        whole, rest = divmod(shape.head_dim, LANES)
        source = self.outputs + r * shape.padded_dim
        for v in range(whole):
            k.store(
                self.out, start + v * LANES, self.scratch.load(source + v * LANES, LANES) * broadcast(inverse, LANES)
            )
        for d in range(whole * LANES, whole * LANES + rest):
            k.store(self.out, start + d, self.scratch.load(source + d) * inverse)

    def _page(self, page: Expr, end: Expr) -> None:
        k, shape = self.k, self.shape
        number = k.let(cast(self.tables.load(self.table + page), "int64"), "number")
        base = k.let(number * self.page + self.layer + self.head * shape.page_head, "base")
        first = k.let(page * PAGE_TOKENS, "first")
        tokens = k.let(tirx.min(end - first, const(PAGE_TOKENS, "int64")), "tokens")
        vectors = k.let((tokens + const(LANES - 1, "int64")) // LANES, "vectors")
        page_maxima = [k.register(const(MASKED, f"float32x{LANES}"), "page_maximum") for _ in self.starts]
        with k.loop(vectors, "vector") as v:
            self._scores(v, k.let(base + v * (shape.padded_dim * LANES), "keys"), first, page_maxima)
        corrections = []
        for r, maximum in enumerate(self.maxima):
            new = k.let(tirx.max(maximum.value, horizontal(k, page_maxima[r].value, tirx.max)), "new")
            difference = k.let(broadcast(maximum.value - new, LANES), "difference")
            corrections.append(k.let(exp(k, difference), "correction"))
            k.set(maximum, new)
            k.set(self.sums[r], rounded_product(self.sums[r].value, corrections[r]))
        with k.loop(vectors, "vector") as v:
            for r in range(self.rows):
                place = k.let(v * LANES + r * PAGE_TOKENS, "place")
                p = exp(k, self.scratch.load(place, LANES) - broadcast(self.maxima[r].value, LANES))
                # Masked tokens must weigh exactly nothing, but exp is clamped.
                masked = self.scratch.load(place, LANES) <= const(LOWEST, f"float32x{LANES}")
                p = k.let(tirx.Select(masked, const(0.0, f"float32x{LANES}"), p), "p")
                k.set(self.sums[r], self.sums[r].value + p)
                k.store(self.scratch, place, p)
        self._values(k.let(base + PAGE_TOKENS * shape.padded_dim, "values"), tokens, corrections)

    def _scores(self, v: Expr, keys: Expr, first: Expr, page_maxima: list[Register]) -> None:
        """Scores of 16 tokens for every row, masked, into the scratch."""
        k, shape, vector = self.k, self.shape, f"float32x{LANES}"
        scores = [k.register(const(0.0, vector), "score") for _ in self.starts]
        with k.loop(const(shape.head_dim, "int64"), "d") as d:
            key = k.let(cast(self.cache.load(keys + d * LANES, LANES), vector), "key")
            for r, start in enumerate(self.starts):
                k.set(scores[r], fma(key, broadcast(self.q.load(start + d), LANES), scores[r].value))
        index = k.let(first + v * LANES, "index")
        lanes = tirx.Ramp(cast(index, "int32"), const(1, "int32"), LANES)
        for r, score in enumerate(scores):
            ends, begins = (broadcast(cast(limit, "int32"), LANES) for limit in (self.ends[r], self.begins[r]))
            scaled = score.value * broadcast(self.scale, LANES)
            seen = tirx.Select(lanes < ends, scaled, const(MASKED, vector))
            seen = k.let(tirx.Select(lanes >= begins, seen, const(MASKED, vector)), "seen")
            k.set(page_maxima[r], tirx.max(page_maxima[r].value, seen))
            k.store(self.scratch, v * LANES + r * PAGE_TOKENS, seen)

    def _values(self, values: Expr, tokens: Expr, corrections: list[Expr]) -> None:
        """output = output · correction + Σ p[token] · V[token], at most 64 channels in registers at a time."""
        k, shape, vector = self.k, self.shape, f"float32x{LANES}"
        total = shape.padded_dim // LANES
        for begin in range(0, total, 4):
            block = range(begin, min(begin + 4, total))
            outputs = [
                [
                    k.register(
                        self.scratch.load(self.outputs + r * shape.padded_dim + v * LANES, LANES) * corrections[r],
                        "output",
                    )
                    for v in block
                ]
                for r in range(self.rows)
            ]
            with k.loop(tokens, "t") as t:
                row = [
                    k.let(cast(self.cache.load(values + t * shape.padded_dim + v * LANES, LANES), vector), "value")
                    for v in block
                ]
                for r in range(self.rows):
                    p = k.let(self.scratch.load(t + r * PAGE_TOKENS), "p")
                    for output, value in zip(outputs[r], row, strict=True):
                        k.set(output, fma(value, broadcast(p, LANES), output.value))
            for r in range(self.rows):
                for v, output in zip(block, outputs[r], strict=True):
                    k.store(self.scratch, self.outputs + r * shape.padded_dim + v * LANES, output.value)
