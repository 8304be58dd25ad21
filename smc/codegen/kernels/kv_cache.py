"""The write of K and V into the KV cache: pages as attention.py has them, slots and tiles as in program.h."""

from __future__ import annotations

from dataclasses import dataclass

import tvm.tirx as tirx

from smc.codegen.kernels.builder import Expr, Kernel, Pointer, cast, const, intrinsic, lanes_of, shuffle, shuffle_pair
from smc.codegen.kernels.rope import rotated_head
from smc.codegen.kernels.sink import symmetric_scale
from smc.codegen.kernels.specs import PAGE_TOKENS, TILE_TOKENS, AttentionShape
from smc.codegen.kernels.vector_math import LANES, horizontal, magnitude

TILE_FIELDS = 4


def read_tile(k: Kernel, tiles: Pointer, tile: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """Token, count, table and index (int64) of a tile (int32)."""
    names = ("token", "count", "table", "index")
    token, count, table, index = (
        k.let(cast(tiles.load(tile * TILE_FIELDS + f), "int64"), n) for f, n in enumerate(names)
    )
    return token, count, table, index


def rope_cache_kernel(name: str, shape: AttentionShape) -> Kernel:
    """int32_t name(k, v, rope, slots, tiles, cache, scales, stride, page, layer, begin, end)

    Blocks are (tile, KV head): rotates the tile's keys and writes keys and values into the cache.
    k, v: float32 [tokens, stride]; rope: float32 [tokens][2][head_dim/2] cosines and sines; slots: int32 [tokens];
    tiles: int32 [n][4] token, count, table, index; cache: all pages; scales: the same memory, for those of an int8
    cache; page: bytes of a page; layer: KV heads in front of this layer's.
    """
    return _CacheWrite(name, shape).build()


@dataclass(frozen=True)
class _Slot:
    """A token's place in a KV head's part of a page: element indices (int64) of its key, whose channels are 16 apart,
    of its value, and, in the scales of an int8 cache, of the key's."""

    key: Expr
    value: Expr
    key_scale: Expr


class _CacheWrite:
    def __init__(self, name: str, shape: AttentionShape) -> None:
        self.shape = shape
        k = self.k = Kernel(name)
        self.key, self.value = k.pointer("k", "float32"), k.pointer("v", "float32")
        self.rope, self.slots = k.pointer("rope", "float32"), k.pointer("slots", "int32")
        self.tiles = k.pointer("tiles", "int32")
        self.cache, self.scales = k.pointer("cache", shape.element_dtype), k.pointer("scales", "float32")
        self.scales.written = True  # by the kernels of one dtype: the others must have the same C parameters
        self.stride = k.let(cast(k.scalar("stride"), "int64"), "stride")
        page, layer = k.scalar("page", "int64"), k.scalar("layer", "int64")
        self.begin, self.end = k.scalar("begin"), k.scalar("end")
        self.page, self.layer = k.let(page // shape.element_bytes, "page_elements"), layer
        # What is written of a tile's keys, as floats.
        self.rows = k.array("float32", TILE_TOKENS * shape.padded_dim, "rows")

    def build(self) -> Kernel:
        k, shape = self.k, self.shape
        with k.loop(self.end - self.begin, "block", begin=self.begin) as block:
            token, count, _, _ = read_tile(k, self.tiles, k.let(block // shape.kv_heads, "tile"))
            head = k.let(cast(block % shape.kv_heads, "int64"), "head")
            with k.loop(count, "t") as t:
                start = k.let((token + t) * self.stride + head * shape.head_dim, "start")
                slot = self._slot(token + t, head)
                row = k.let(t * shape.padded_dim, "row")
                self._write_value(start, slot, row)
                self._keep_key(token + t, start, slot, row)
            first = self._slot(token, head)
            # A tile is of one sequence: from a multiple of 8 on, its tokens lie in the same 16 of a page.
            aligned = first.key % TILE_TOKENS == const(0, "int64")
            together = k.let(cast(tirx.And(count == const(TILE_TOKENS, "int64"), aligned), "int32"), "together")
            with k.when(together != const(0, "int32")):
                self._write_keys(first)
            with k.when(together == const(0, "int32")), k.loop(count, "t") as t:
                self._write_key(self._slot(token + t, head), k.let(t * shape.padded_dim, "row"))
        return k

    def _slot(self, token: Expr, head: Expr) -> _Slot:
        k, shape = self.k, self.shape
        slot = k.let(cast(self.slots.load(token), "int64"), "slot")
        place = k.let(slot % PAGE_TOKENS, "place")
        base = k.let((slot // PAGE_TOKENS) * self.page + (self.layer + head) * shape.page_head, "base")
        key = k.let(base + (place // LANES) * (shape.padded_dim * LANES) + place % LANES, "key")
        value = k.let(base + PAGE_TOKENS * shape.padded_dim + place * shape.padded_dim, "value")
        return _Slot(key, value, ((base + shape.page_scales) >> const(2, "int64")) + place)

    def _write_value(self, start: Expr, slot: _Slot, row: Expr) -> None:
        """A value; its codes go through the place of the token's key."""
        k, shape = self.k, self.shape
        source, begin = self.value, start
        if shape.kv_dtype == "i8":
            source, begin = self.rows, row
            self._round(self.value, start, row, slot.key_scale + PAGE_TOKENS)
        whole = shape.head_dim // LANES * LANES
        for d in range(0, whole, LANES):
            k.store(self.cache, slot.value + d, self._stored(source.load(begin + d, LANES)))
        for d in range(whole, shape.head_dim):
            k.store(self.cache, slot.value + d, self._stored(source.load(begin + d)))

    def _keep_key(self, token: Expr, start: Expr, slot: _Slot, row: Expr) -> None:
        """A rotated key, as codes where the cache has these."""
        for d, values in rotated_head(self.k, self.shape, self.key, start, self.rope, token):
            self.k.store(self.rows, row + d, values)
        if self.shape.kv_dtype == "i8":
            self._round(self.rows, row, row, slot.key_scale)

    def _write_key(self, slot: _Slot, row: Expr) -> None:
        """A key alone: its channels lie apart."""
        k, whole = self.k, self.shape.head_dim // LANES * LANES
        with k.loop(const(whole // LANES, "int64"), "vector") as v:
            d = k.let(v * LANES, "d")
            values = k.let(self._stored(self.rows.load(row + d, LANES)), "values")
            for lane in range(LANES):
                k.store(self.cache, slot.key + (d + lane) * LANES, shuffle(values, [lane]))
        for d in range(whole, self.shape.head_dim):
            k.store(self.cache, slot.key + d * LANES, self._stored(self.rows.load(row + d)))

    def _write_keys(self, first: _Slot) -> None:
        """The keys of a whole tile, transposed: channel by channel a vector of its tokens."""
        k, shape = self.k, self.shape
        whole = shape.head_dim // LANES * LANES
        with k.loop(const(whole // LANES, "int64"), "vector") as v:
            self._write_channels(first, k.let(v * LANES, "d"), LANES)
        if whole < shape.head_dim:
            self._write_channels(first, const(whole, "int64"), shape.head_dim - whole)

    def _write_channels(self, first: _Slot, begin: Expr, count: int) -> None:
        k, shape = self.k, self.shape
        vectors = [
            k.let(self._stored(self.rows.load(begin + t * shape.padded_dim, LANES)), "row") for t in range(TILE_TOKENS)
        ]
        while len(vectors) > 1:
            half = len(vectors) // 2
            vectors = [k.let(_zipped(a, b), "zipped") for a, b in zip(vectors[:half], vectors[half:], strict=True)]
        for d in range(count):
            channel = shuffle(vectors[0], range(d * TILE_TOKENS, (d + 1) * TILE_TOKENS))
            k.store(self.cache, first.key + (begin + d) * LANES, channel)

    def _round(self, x: Pointer, start: Expr, row: Expr, scale_place: Expr) -> None:
        """A head's codes, as floats, go to self.rows[row…], and their scale into the cache (docs/numerics.md)."""
        k, shape = self.k, self.shape
        whole = shape.head_dim // LANES * LANES
        largest = k.register(const(0.0, f"float32x{LANES}"), "largest")
        with k.loop(const(whole // LANES, "int64"), "vector") as v:
            k.set(largest, tirx.max(largest.value, magnitude(k.let(x.load(start + v * LANES, LANES), "x"))))
        amax = k.register(horizontal(k, largest.value, tirx.max), "amax")
        for d in range(whole, shape.head_dim):
            k.set(amax, tirx.max(amax.value, intrinsic("float32", "llvm.fabs", x.load(start + d))))
        scale, inverse = symmetric_scale(k, amax.value)
        k.store(self.scales, scale_place, scale)
        with k.loop(const(shape.head_dim, "int64"), "d") as d:
            k.store(self.rows, row + d, intrinsic("float32", "llvm.nearbyint", x.load(start + d) * inverse))

    def _stored(self, values: Expr) -> Expr:
        """Floats in the cache's type: rounded to f16; codes are whole numbers."""
        lanes = "" if lanes_of(values) == 1 else f"x{lanes_of(values)}"
        if self.shape.kv_dtype == "i8":
            values = cast(values, f"int32{lanes}")
        return cast(values, f"{self.cache.dtype}{lanes}")


def _zipped(a: Expr, b: Expr) -> Expr:
    """The lanes of two vectors in turns."""
    count = lanes_of(a)
    return shuffle_pair([a, b], [half * count + i for i in range(count) for half in range(2)])
