"""Attention over the pages of the KV cache, split by cache index.

KV pages (program.h): for every layer and KV head, K as [64/16][padded head_dim][16 tokens], then V as
[64][padded head_dim]. So the lanes of a score vector are 16 tokens, and those of an output vector are channels: only
the softmax's maximum and sum are reduced across lanes.
Every split of 256 cached tokens has a softmax of its own (maximum, sums, output); splits are merged in order, as in
online softmax (Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018). One block may do all splits of
a tile, or every split be a block (as in Flash-Decoding, Dao et al. 2023) and a second kernel merge: the same bits.
Within a split both matrix products are tiled: a few query rows by a few vectors of tokens or channels in registers, so
that all of these rows use each value of K and V that is read and widened.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm.tirx as tirx

from smc.codegen.cpu.builder import (
    CACHE_LINE,
    Expr,
    Kernel,
    Pointer,
    Register,
    broadcast,
    cast,
    const,
    dtype_of,
    fma,
    lanes_of,
    rounded_product,
    shuffle,
    shuffle_pair,
)
from smc.codegen.cpu.kernels.head_norm import HeadNorm
from smc.codegen.cpu.kernels.kv_cache import read_tile
from smc.codegen.cpu.kernels.rope import rotated_head
from smc.codegen.cpu.kernels.vector_math import LANES, exp2, horizontal, horizontal_each, tanh
from smc.codegen.kernels.abi import MOST_ROWS, PAGE_TOKENS, SPLIT_TOKENS, TILE_TOKENS, AttentionShape, rows_per_token
from smc.codegen.kernels.specs import AttentionKernel, MergeKernel
from smc.ir import ceil_div
from smc.targets import CpuLevel

MASKED, LOWEST = -3.0e38, -1.0e30
"""Score of a masked token, and a split's least maximum: 2 to the power of their difference is exactly 0."""

VECTOR = f"float32x{LANES}"


def attention_kernel(name: str, spec: AttentionKernel, level: CpuLevel) -> Kernel:
    """Blocks are (tile, KV head, split).

    splits: 1 for blocks that do all splits of their tile and write `out`; otherwise block s of a tile and head writes
    the states of split s to `partials`: float32 [tokens, splits, heads, state]. scales: the same memory as cache, read
    as the scales of an int8 cache. tiles: int32 [n][4] token, count, table, index (program.h); tables: page numbers. q,
    out: float32 [tokens, stride]; rope: float32 [tokens][2][head_dim/2] cosines and sines, by which q is rotated; a
    token at cache index i sees indices i-window < j <= i (window 0: all). page: bytes of a page; layer: the number of
    KV heads before this layer's; scale: the factor of q, which includes log2(e), because the softmax uses powers of 2.
    Writing `out`, the last KV head's block also clears its padding.
    """
    return _Attention(name, spec, level).build()


def merge_kernel(name: str, spec: MergeKernel, level: CpuLevel) -> Kernel:
    """Blocks are (tile, query head): merges what `attention_kernel` left in `partials` and writes `out`.
    """
    k, shape = Kernel(name, spec.signature()), spec.shape
    tiles, partials, out = k.pointer("tiles", "int32"), k.pointer("partials"), k.pointer("out")
    scratch = k.pointer("scratch")
    stride = k.let(cast(k.scalar("stride"), "int64"), "stride")
    window = k.let(cast(k.scalar("window"), "int64"), "window")
    splits = k.let(cast(k.scalar("splits"), "int64"), "splits")
    begin, end = k.scalar("begin"), k.scalar("end")
    with k.loop(end - begin, "block", begin=begin) as block:
        head = k.let(cast(block % shape.heads, "int64"), "head")
        token, count, _, index = read_tile(k, tiles, k.let(block // shape.heads, "tile"))
        with k.loop(count, "t") as t:
            first, last = _split_range(k, index + t, index + t, window)
            _clear_state(k, scratch, const(0, "int64"), shape)
            with k.loop(last - first, "split", begin=first) as split:
                row = k.let(_partial(shape, token + t, splits, split, head), "row")
                new = k.let(tirx.max(scratch.load(LANES), partials.load(row + LANES)), "new")
                both = _factors(k, scratch.load(LANES), partials.load(row + LANES), new)
                factors = [broadcast(k.let(shuffle(both, [number]), "factor"), LANES) for number in range(2)]
                k.store(scratch, LANES, broadcast(new, LANES))
                for v in [0, *range(2, shape.state_floats // LANES)]:
                    _fold(k, scratch, const(v * LANES, "int64"), partials.load(row + v * LANES, LANES), factors)
            start = k.let((token + t) * stride + head * shape.head_dim, "start")
            _store_row(k, shape, scratch, const(0, "int64"), out, start)
        with k.when(head == const(shape.heads - 1, "int64")):
            _clear_padding(k, shape, out, token, count, stride)
    return k


# ---- states of query rows: sums [16], maximum (16 times), output [padded head_dim]


def _clear_state(k: Kernel, scratch: Pointer, place: Expr, shape: AttentionShape) -> None:
    for v in range(shape.state_floats // LANES):
        k.store(scratch, place + v * LANES, const(LOWEST if v == 1 else 0.0, VECTOR))


def _factors(k: Kernel, old: Expr, other: Expr, new: Expr) -> Expr:
    """The factors of states that are merged, by their maxima and the new ones, numbers or vectors: first the
    old states' factors, then the others'."""
    return exp2(k, k.let(shuffle_pair([old - new, other - new], range(2 * lanes_of(new))), "difference"))


def _fold(k: Kernel, scratch: Pointer, place: Expr, other: Expr, factors: Sequence[Expr]) -> None:
    """state = other · its factor + state · its factor."""
    old = rounded_product(scratch.load(place, LANES), factors[0])
    k.store(scratch, place, fma(other, factors[1], old))


def _store_row(k: Kernel, shape: AttentionShape, scratch: Pointer, place: Expr, out: Pointer, start: Expr) -> None:
    """A finished state's output, divided by its sum."""
    total = horizontal(k, scratch.load(place, LANES), lambda a, b: a + b)
    inverse = k.let(const(1.0, "float32") / total, "inverse")
    whole, rest = divmod(shape.head_dim, LANES)
    source = k.let(place + 2 * LANES, "source")
    for v in range(whole):
        k.store(out, start + v * LANES, scratch.load(source + v * LANES, LANES) * broadcast(inverse, LANES))
    for d in range(whole * LANES, whole * LANES + rest):
        k.store(out, start + d, scratch.load(source + d) * inverse)


def _clear_padding(k: Kernel, shape: AttentionShape, out: Pointer, token: Expr, count: Expr, stride: Expr) -> None:
    width = shape.heads * shape.head_dim
    with k.loop(count, "t") as t, k.loop(stride - width, "pad", begin=const(width, "int64")) as pad:
        k.store(out, (token + t) * stride + pad, const(0.0, "float32"))


def _partial(shape: AttentionShape, token: Expr, splits: Expr, split: Expr, head: Expr) -> Expr:
    """Where the state of a token's query head in a split begins."""
    return ((token * splits + split) * shape.heads + head) * shape.state_floats


def _split_range(k: Kernel, first: Expr, last: Expr, window: Expr) -> tuple[Expr, Expr]:
    """The splits that tokens at the cache indices first…last attend to: the first one, and the end."""
    begin = k.let(_first_seen(first, window) // SPLIT_TOKENS, "first_split")
    return begin, k.let(last // SPLIT_TOKENS + 1, "last_split")


def _first_seen(index: Expr, window: Expr) -> Expr:
    """The first cache index that a token attends to."""
    zero = const(0, "int64")
    return tirx.Select(window > zero, tirx.max(index + 1 - window, zero), zero)


class _Pass:
    """Rows that are in registers together: their masks and places, and the cached tokens of a split that they attend
    to."""

    def __init__(self, row: Expr, ends: list[Expr], begins: list[Expr], per_token: int) -> None:
        self.row = row  # the first; rows lie one after the other
        self.ends, self.begins, self.per_token = ends, begins, per_token  # by token: sees cache indices begin … end-1
        self.rows = len(ends) * per_token
        self.page: Expr = None  # the first page that they see in the split, …
        self.base: Expr = None  # … its first cache index …
        self.tokens: Expr = None  # … and how many tokens there are from it on
        self.fetches = False  # K and V are read once: from memory, so the next split's are prefetched


class _Attention:
    def __init__(self, name: str, spec: AttentionKernel, level: CpuLevel) -> None:
        shape = self.shape = spec.shape
        self.budget = level.registers * 3 // 4  # accumulators; the others hold operands
        self.units = LANES // level.lanes  # registers of a vector
        most = min(MOST_ROWS, self.budget // self.units)
        self.token_rows = rows_per_token(shape.group, most)
        self.pieces = ceil_div(shape.group, most)  # passes of a single token
        # A power of two, as a tile's tokens are, so that none is left over.
        tokens = min(TILE_TOKENS, max(1, most // self.token_rows))
        self.pass_tokens = 1 << (tokens.bit_length() - 1)
        k = self.k = Kernel(name, spec.signature())
        self.q, self.rope = k.pointer("q"), k.pointer("rope")
        self.cache, self.scales = k.pointer("cache", shape.element_dtype), k.pointer("scales", "float32")
        self.tables, self.tiles = k.pointer("tables"), k.pointer("tiles", "int32")
        self.out, self.partials, self.scratch = k.pointer("out"), k.pointer("partials"), k.pointer("scratch")
        stride, page = k.scalar("stride"), k.scalar("page")
        self.layer, self.scale = k.scalar("layer"), k.scalar("scale")
        window, splits = k.scalar("window"), k.scalar("splits")
        self.norm = HeadNorm(k.pointer("norm"), k.scalar("eps")) if shape.normed else None
        self.cap = k.scalar("cap") if shape.capped else None
        self.begin, self.end = k.scalar("begin"), k.scalar("end")
        self.stride, self.window, self.splits = (
            k.let(cast(s, "int64"), n) for s, n in ((stride, "stride"), (window, "window"), (splits, "splits"))
        )
        self.page = k.let(page // shape.element_bytes, "page_elements")
        # The scratch: a pass's probabilities, the scales of its values; a tile's queries, states and their maxima; a
        # pass's two factors and its split's maximum per row.
        tile_rows = TILE_TOKENS * self.token_rows
        self.value_scales = MOST_ROWS * SPLIT_TOKENS
        self.queries = self.value_scales + SPLIT_TOKENS
        self.states = self.queries + tile_rows * shape.padded_dim
        self.maxima = self.states + tile_rows * shape.state_floats
        self.factors = self.maxima + tile_rows
        self.split_maxima = self.factors + 2 * MOST_ROWS

    def build(self) -> Kernel:
        k, shape = self.k, self.shape
        with k.loop(self.end - self.begin, "block", begin=self.begin) as block:
            block = k.let(cast(block, "int64"), "block")
            pair = k.let(tirx.truncdiv(block, self.splits), "pair")
            tile = k.let(cast(pair // shape.kv_heads, "int32"), "tile")
            self.head = k.let(pair % shape.kv_heads, "head")
            self.token, self.count, self.table, self.index = read_tile(k, self.tiles, tile)
            first, last = _split_range(k, self.index, self.index + self.count - 1, self.window)
            alone = k.let(tirx.truncmod(block, self.splits), "split")  # the block's only split, unless it does all
            one = const(1, "int64")
            first = k.let(tirx.Select(self.splits > one, tirx.max(first, alone), first), "first")
            last = k.let(tirx.Select(self.splits > one, tirx.min(last, alone + 1), last), "last")
            with k.when(first < last):
                self._gather()
                with k.loop(last - first, "split", begin=first) as split:
                    self._split(k.let(split * SPLIT_TOKENS, "split_begin"))
                with k.when(self.splits > one):
                    self._store_partials(alone)
                with k.when(self.splits <= one):
                    self._finish()
        return k

    def _gather(self) -> None:
        """Rows [count, token_rows]: the tile's queries, rotated, times the scale; states are cleared.

        Padding repeats a head.
        """
        k, shape = self.k, self.shape
        with k.loop(self.count, "t") as t, k.loop(const(self.token_rows, "int64"), "h") as h:
            row = k.let(t * self.token_rows + h, "row")
            head = k.let(self.head * shape.group + tirx.min(h, const(shape.group - 1, "int64")), "q_head")
            start = k.let((self.token + t) * self.stride + head * shape.head_dim, "start")
            place = k.let(self.queries + row * shape.padded_dim, "place")
            for d, values in rotated_head(k, shape, self.q, start, self.rope, self.token + t, self.norm):
                k.store(self.scratch, place + d, values * broadcast(self.scale, lanes_of(values)))
            _clear_state(k, self.scratch, k.let(self.states + row * shape.state_floats, "state"), shape)
            k.store(self.scratch, self.maxima + row, const(LOWEST, "float32"))

    def _finish(self) -> None:
        k, shape = self.k, self.shape
        with k.loop(self.count, "t") as t, k.loop(const(shape.group, "int64"), "h") as h:
            state = k.let(self.states + (t * self.token_rows + h) * shape.state_floats, "state")
            head = k.let(self.head * shape.group + h, "q_head")
            start = k.let((self.token + t) * self.stride + head * shape.head_dim, "start")
            _store_row(k, shape, self.scratch, state, self.out, start)
        with k.when(self.head == const(shape.kv_heads - 1, "int64")):
            _clear_padding(k, shape, self.out, self.token, self.count, self.stride)

    def _store_partials(self, split: Expr) -> None:
        k, shape = self.k, self.shape
        with k.loop(self.count, "t") as t, k.loop(const(shape.group, "int64"), "h") as h:
            row = k.let(t * self.token_rows + h, "row")
            state = k.let(self.states + row * shape.state_floats, "state")
            head = self.head * shape.group + h
            place = k.let(_partial(shape, self.token + t, self.splits, split, head), "place")
            k.store(self.scratch, state + LANES, broadcast(self.scratch.load(self.maxima + row), LANES))
            for v in range(shape.state_floats // LANES):
                k.store(self.partials, place + v * LANES, self.scratch.load(state + v * LANES, LANES))

    # ---- one split

    def _split(self, split: Expr) -> None:
        """All rows of the tile over one split: whole passes, then the rest token by token."""
        k = self.k
        tokens = self.pass_tokens
        whole = k.let(self.count // tokens, "whole") if tokens > 1 else const(0, "int64")
        if tokens > 1:
            with k.loop(whole, "pass") as i:
                self._pass(k.let(i * tokens, "first_token"), const(0, "int64"), tokens, self.token_rows, split)
        with k.loop((self.count - whole * tokens) * self.pieces, "pass", begin=whole * (tokens * self.pieces)) as i:
            rows = self.token_rows // self.pieces
            piece = k.let(i % self.pieces * rows, "piece")
            self._pass(k.let(i // self.pieces, "first_token"), piece, 1, rows, split)

    def _pass(self, token: Expr, head: Expr, tokens: int, per_token: int, split: Expr) -> None:
        """Rows of some tokens from `token` on, from row `head` of a token on, over a split."""
        k = self.k
        indices = [k.let(self.index + token + t, "index") for t in range(tokens)]
        ends = [k.let(index + 1, "end") for index in indices]
        begins = [k.let(_first_seen(index, self.window), "begin") for index in indices]
        rows = _Pass(k.let(token * self.token_rows + head, "row"), ends, begins, per_token)
        # Tokens come in order: the first begins earliest, the last ends latest.
        rows.page = k.let(tirx.max(begins[0], split) // PAGE_TOKENS, "first_page")
        rows.base = k.let(rows.page * PAGE_TOKENS, "base")
        rows.tokens = k.let(tirx.min(ends[-1], split + SPLIT_TOKENS) - rows.base, "tokens")
        rows.fetches = tokens == 1
        with k.when(rows.tokens > const(0, "int64")):
            pages = k.let((rows.tokens + (PAGE_TOKENS - 1)) // PAGE_TOKENS, "pages")
            with k.loop(pages, "page") as page:
                self._scores(rows, page)
            self._softmax(rows)
            self._values(rows, pages)

    def _page(self, rows: _Pass, page: Expr) -> tuple[Expr, Expr]:
        """Where the head's part of a page (counted from the pass's first) begins; how many of its tokens are seen."""
        k = self.k
        number = k.let(cast(self.tables.load(self.table + rows.page + page), "int64"), "number")
        tokens = tirx.min(rows.tokens - page * PAGE_TOKENS, const(PAGE_TOKENS, "int64"))
        return self._page_begin(number), k.let(tokens, "page_tokens")

    def _page_begin(self, number: Expr) -> Expr:
        """Where the head's part of a page of the cache begins."""
        return self.k.let(number * self.page + (self.layer + self.head) * self.shape.page_head, "head_begin")

    def _later_page(self, rows: _Pass, page: Expr, distance: int) -> Expr:
        """Where a page that is `distance` behind this one begins, or the tile's last one."""
        last = (self.index + self.count - 1) // PAGE_TOKENS
        later = tirx.min(rows.page + page + distance, last)
        return self._page_begin(self.k.let(cast(self.tables.load(self.table + later), "int64"), "later_number"))

    def _fetch(self, begin: Expr, step: Expr, elements: int) -> None:
        """Prefetch a loop's share of the memory from `begin` on, so many elements per turn."""
        line = CACHE_LINE // self.shape.element_bytes
        for offset in range(0, elements, line):
            self.k.prefetch(self.cache, begin + step * elements + offset)

    def _scores(self, rows: _Pass, page: Expr) -> None:
        """Scores of a page's tokens for all rows, masked, into the scratch."""
        k = self.k
        keys, tokens = self._page(rows, page)
        later = self._later_page(rows, page, 1) if rows.fetches else None
        widths = [n for n in (4, 2, 1) if n == 1 or rows.rows * n * self.units <= self.budget]
        vectors = k.let((tokens + (LANES - 1)) // LANES, "vectors")
        if rows.fetches:
            # The last chunk may compute tokens that no one sees.
            widths = widths[:1]
            vectors = vectors + (widths[0] - 1)
        done = const(0, "int64")
        for width in widths:
            chunks = k.let((vectors - done) // width, "chunks")
            with k.loop(chunks, "chunk") as chunk:
                first = k.let(done + chunk * width, "first")
                self._score_chunk(rows, page, keys, first, width, later)
            done = k.let(done + chunks * width, "done")

    def _score_chunk(self, rows: _Pass, page: Expr, keys: Expr, first: Expr, width: int, later: Expr | None) -> None:
        """Scores of a page's `width` vectors of tokens from vector `first` on."""
        k, shape = self.k, self.shape
        start = k.let(keys + first * (LANES * shape.padded_dim), "keys")
        scores = [[k.register(const(0.0, VECTOR), "score") for _ in range(width)] for _ in range(rows.rows)]
        with k.loop(const(shape.head_dim, "int64"), "d") as d:
            if later is not None:
                step = first // width * shape.padded_dim + d
                self._fetch(keys + PAGE_TOKENS * shape.padded_dim, step, width * LANES)
                self._fetch(later, step, width * LANES)
            vectors = [
                k.let(cast(self.cache.load(start + d * LANES + v * LANES * shape.padded_dim, LANES), VECTOR), "key")
                for v in range(width)
            ]
            for r, row in enumerate(scores):
                q = self.scratch.load(self.queries + (rows.row + r) * shape.padded_dim + d)
                query = broadcast(k.let(q, "query"), LANES)
                for register, vector in zip(row, vectors, strict=True):
                    k.set(register, fma(vector, query, register.value))
        begin = k.let(rows.base + page * PAGE_TOKENS + first * LANES, "begin")
        seen = tirx.And(begin >= rows.begins[-1], begin + width * LANES <= rows.ends[0])
        all_seen = k.let(cast(seen, "int32"), "all_seen")
        for v in range(width):
            place = k.let((first + v) * LANES, "place")
            column = [row[v] for row in scores]
            if shape.kv_dtype == "i8":
                self._apply_scales(keys, page, place, column)
            if self.cap is not None:
                for score in column:
                    k.set(score, rounded_product(tanh(k, score.value), broadcast(self.cap, LANES)))
            place = k.let(page * PAGE_TOKENS + place, "place")
            with k.when(all_seen != const(0, "int32")):
                for r, score in enumerate(column):
                    k.store(self.scratch, place + r * SPLIT_TOKENS, score.value)
            with k.when(all_seen == const(0, "int32")):
                self._store_masked(rows, place, column)

    def _apply_scales(self, head: Expr, page: Expr, place: Expr, scores: list[Register]) -> None:
        """Scores of codes, times the scales of these 16 keys; the values' scales go where `_softmax` finds them."""
        k = self.k
        scales = k.let(((head + self.shape.page_scales) >> const(2, "int64")) + place, "scales")
        factor = k.let(self.scales.load(scales, LANES), "factor")
        for score in scores:
            k.set(score, score.value * factor)
        to = page * PAGE_TOKENS + place + self.value_scales
        k.store(self.scratch, to, self.scales.load(scales + PAGE_TOKENS, LANES))

    def _store_masked(self, rows: _Pass, place: Expr, scores: list[Register]) -> None:
        k = self.k
        lanes = k.let(cast(rows.base + place, "int32"), "first_lane")
        indices = tirx.Ramp(lanes, const(1, "int32"), LANES)
        for r, score in enumerate(scores):
            end, begin = (x[r // rows.per_token] for x in (rows.ends, rows.begins))
            seen = tirx.Select(indices < broadcast(cast(end, "int32"), LANES), score.value, const(MASKED, VECTOR))
            seen = tirx.Select(indices >= broadcast(cast(begin, "int32"), LANES), seen, const(MASKED, VECTOR))
            k.store(self.scratch, place + r * SPLIT_TOKENS, seen)

    def _softmax(self, rows: _Pass) -> None:
        """Scores → probabilities against the split's own maximum; new sums and maxima, and the factors of the merge."""
        k, shape = self.k, self.shape
        vectors = k.let((rows.tokens + (LANES - 1)) // LANES, "vectors")
        first = 0
        for count in (16, 8, 4, 2, 1):
            while count * self.units <= self.budget and first + count <= rows.rows:
                self._maxima(rows, vectors, first, count)
                first += count
        with k.loop(const(rows.rows, "int64"), "r") as r:
            start = k.let(r * SPLIT_TOKENS, "start")
            maximum = k.let(broadcast(self.scratch.load(self.split_maxima + r), LANES), "maximum")
            sums = k.register(const(0.0, VECTOR), "sums")
            with k.loop(vectors, "vector") as v:
                place = k.let(start + v * LANES, "place")
                p = exp2(k, self.scratch.load(place, LANES) - maximum)
                k.set(sums, sums.value + p)
                if shape.kv_dtype == "i8":
                    p = p * self.scratch.load(self.value_scales + v * LANES, LANES)
                k.store(self.scratch, place, p)
            state = k.let(self.states + (rows.row + r) * shape.state_floats, "state")
            _fold(k, self.scratch, state, sums.value, self._row_factors(r))

    def _maxima(self, rows: _Pass, vectors: Expr, first: int, count: int) -> None:
        """The split's maxima of `count` rows of a pass, a power of two, from row `first` on; the states' new ones and
        the factors of the merge. The rows share the shuffles and the powers."""
        k = self.k
        largest = [k.register(const(MASKED, VECTOR), "largest") for _ in range(count)]
        with k.loop(vectors, "vector") as v:
            for r, register in enumerate(largest, first):
                k.set(register, tirx.max(register.value, self.scratch.load(v * LANES + r * SPLIT_TOKENS, LANES)))
        totals = horizontal_each(k, [register.value for register in largest], tirx.max)
        totals = totals if count == 1 else shuffle(totals, range(0, LANES, LANES // count))
        maxima = k.let(tirx.max(totals, const(LOWEST, dtype_of(totals))), "maxima")
        place = k.let(rows.row + (self.maxima + first), "place")
        old = k.let(self.scratch.load(place, count), "old")
        new = k.let(tirx.max(old, maxima), "new")
        k.store(self.scratch, place, new)
        k.store(self.scratch, const(self.split_maxima + first, "int64"), maxima)
        factors = _factors(k, old, maxima, new)
        for number in range(2):
            lanes = shuffle(factors, range(number * count, (number + 1) * count))
            k.store(self.scratch, const(self.factors + number * MOST_ROWS + first, "int64"), lanes)

    def _row_factors(self, row: Expr) -> list[Expr]:
        """The factor of the state of a pass's row, then the factor of its split."""
        places = [self.factors + row, self.factors + MOST_ROWS + row]
        return [broadcast(self.k.let(self.scratch.load(place), "factor"), LANES) for place in places]

    def _values(self, rows: _Pass, pages: Expr) -> None:
        """Σ p[token] · V[token], merged into the states' outputs: some channels at a time in registers."""
        k = self.k
        total = self.shape.padded_dim // LANES
        width = ceil_div(total, ceil_div(total, max(1, self.budget // (rows.rows * self.units))))
        blocks, rest = divmod(total, width)
        with k.loop(const(blocks, "int64"), "channels") as block:
            self._value_block(rows, pages, k.let(block * width, "first_vector"), width)
        if rest:
            self._value_block(rows, pages, const(blocks * width, "int64"), rest)

    def _value_block(self, rows: _Pass, pages: Expr, first: Expr, width: int) -> None:
        """`_values` of `width` vectors of channels from vector `first` on."""
        k, shape = self.k, self.shape
        channels = k.let(first * LANES, "channels")
        outputs = [[k.register(const(0.0, VECTOR), "output") for _ in range(width)] for _ in range(rows.rows)]
        with k.loop(pages, "page") as page:
            start, tokens = self._page(rows, page)
            values = k.let(start + (channels + PAGE_TOKENS * shape.padded_dim), "values")
            later = None
            if rows.fetches:
                # Every block prefetches a share.
                later = self._later_page(rows, page, SPLIT_TOKENS // PAGE_TOKENS)
                later = k.let(later + channels * PAGE_TOKENS, "later")
            with k.loop(tokens, "t") as t:
                if later is not None:
                    self._fetch(later, t, width * LANES)
                row = [
                    k.let(cast(self.cache.load(values + t * shape.padded_dim + v * LANES, LANES), VECTOR), "value")
                    for v in range(width)
                ]
                for r in range(rows.rows):
                    p = k.let(self.scratch.load(page * PAGE_TOKENS + t + r * SPLIT_TOKENS), "p")
                    for output, value in zip(outputs[r], row, strict=True):
                        k.set(output, fma(value, broadcast(p, LANES), output.value))
        for r in range(rows.rows):
            factors = self._row_factors(const(r, "int64"))
            state = (rows.row + r) * shape.state_floats + (channels + (self.states + 2 * LANES))
            for v, output in enumerate(outputs[r]):
                _fold(k, self.scratch, k.let(state + v * LANES, "state"), output.value, factors)
