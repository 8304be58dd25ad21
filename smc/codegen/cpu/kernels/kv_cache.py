"""The write of K and V into the KV cache: pages as attention.py has them, slots and tiles as in program.h."""

from __future__ import annotations

from dataclasses import dataclass

import tvm.tirx as tirx

from smc.codegen.cpu.builder import (
    Expr,
    Kernel,
    Pointer,
    Register,
    broadcast,
    cast,
    const,
    dtype_of,
    intrinsic,
    lanes_of,
    shuffle,
    shuffle_pair,
)
from smc.codegen.cpu.kernels.head_norm import HeadNorm
from smc.codegen.cpu.kernels.rope import rotated_head, rotated_lanes
from smc.codegen.cpu.kernels.sink import symmetric_scale
from smc.codegen.cpu.kernels.vector_math import LANES, horizontal, magnitude, nearest
from smc.codegen.kernels.abi import PAGE_TOKENS, TILE_TOKENS
from smc.codegen.kernels.specs import RopeKernel
from smc.targets import CpuLevel

TILE_FIELDS = 4

F16_OVERFLOW = 65520.0
"""The least float32 that is rounded to infinity."""


def read_tile(k: Kernel, tiles: Pointer, tile: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """Token, count, table and index (int64) of a tile (int32)."""
    names = ("token", "count", "table", "index")
    token, count, table, index = (
        k.let(cast(tiles.load(tile * TILE_FIELDS + f), "int64"), n) for f, n in enumerate(names)
    )
    return token, count, table, index


def rope_cache_kernel(name: str, spec: RopeKernel, level: CpuLevel) -> Kernel:
    """Blocks are (tile, KV head): rotates the tile's keys and writes keys and values into the cache.
    k, v: float32 [tokens, stride]; rope: float32 [tokens][2][head_dim/2] cosines and sines; slots: int32 [tokens];
    tiles: int32 [n][4] token, count, table, index; cache: all pages; scales: the same memory, read as the scales of an
    int8 cache; page: bytes of a page; layer: the number of KV heads before this layer's. beyond: int32 [1], becomes 1
    if a key or a value is beyond the cache's range: NaN, infinite, or in f16 rounded to infinity.
    """
    return _CacheWrite(name, spec, level).build()


def _floats(lanes: int) -> str:
    return "float32" if lanes == 1 else f"float32x{lanes}"


@dataclass(frozen=True)
class _Slot:
    """A token's place in a KV head's part of a page: element indices (int64) of its key, whose channels are 16 apart,
    of its value, and of the key's scale in an int8 cache."""

    key: Expr
    value: Expr
    key_scale: Expr


class _CacheWrite:
    def __init__(self, name: str, spec: RopeKernel, level: CpuLevel) -> None:
        shape, self.level = spec.shape, level
        self.shape = shape
        k = self.k = Kernel(name, spec.signature())
        self.key, self.value = k.pointer("k"), k.pointer("v")
        self.rope, self.slots = k.pointer("rope"), k.pointer("slots")
        self.tiles = k.pointer("tiles", "int32")
        self.cache, self.scales = k.pointer("cache", shape.element_dtype), k.pointer("scales", "float32")
        self.beyond = k.pointer("beyond")
        self.stride = k.let(cast(k.scalar("stride"), "int64"), "stride")
        page, layer = k.scalar("page"), k.scalar("layer")
        self.norm = HeadNorm(k.pointer("norm"), k.scalar("eps")) if shape.normed else None
        self.begin, self.end = k.scalar("begin"), k.scalar("end")
        self.page, self.layer = k.let(page // shape.element_bytes, "page_elements"), layer
        # A tile's keys in the cache's type; for codes also a rotated key.
        self.rows = k.array(shape.element_dtype, TILE_TOKENS * shape.padded_dim, "rows")
        self.rotated = k.array("float32", shape.padded_dim, "rotated") if shape.kv_dtype == "i8" else None
        self.limit = F16_OVERFLOW if shape.kv_dtype == "f16" else float("inf")
        # By width of a vector: not 0 if an element was beyond the range.
        self.faults: dict[int, Register] = {}

    def build(self) -> Kernel:
        k, shape = self.k, self.shape
        with k.loop(self.end - self.begin, "block", begin=self.begin) as block:
            token, count, _, _ = read_tile(k, self.tiles, k.let(block // shape.kv_heads, "tile"))
            head = k.let(cast(block % shape.kv_heads, "int64"), "head")
            first = self._slot(token, head)
            # A tile is of one sequence: from a multiple of 8 on, its tokens lie in the same 16 of a page.
            aligned = first.key % TILE_TOKENS == const(0, "int64")
            together = k.let(cast(tirx.And(count == const(TILE_TOKENS, "int64"), aligned), "int32"), "together")
            self.faults = {
                lanes: k.register(const(0.0, _floats(lanes)), "fault")
                for lanes in {1, LANES, *([rotated_lanes(shape)] if shape.rotary else [])}
            }
            with k.loop(count, "t") as t:
                start = k.let((token + t) * self.stride + head * shape.head_dim, "start")
                slot = self._slot(token + t, head)
                row = k.let(t * shape.padded_dim, "row")
                self._write_value(start, slot)
                self._keep_key(token + t, start, slot, row)
                with k.when(together == const(0, "int32")):
                    self._write_key(slot, row)
            with k.when(together != const(0, "int32")):
                self._write_keys(first)
            self._tell()
        return k

    def _watch(self, values: Expr) -> Expr:
        """Compare values with the limit and return them; NaN is never below it."""
        k, lanes = self.k, lanes_of(values)
        values = k.let(values, "values")
        dtype = _floats(lanes)
        fits = intrinsic(dtype, "llvm.fabs", values) < const(self.limit, dtype)
        fault = self.faults[lanes]
        k.set(fault, tirx.Select(fits, fault.value, const(1.0, dtype)))
        return values

    def _tell(self) -> None:
        """Set the step's flag if an element was beyond the range; all threads write the same value."""
        k, zero = self.k, const(0.0, "float32")
        for lanes, fault in self.faults.items():
            largest = horizontal(k, fault.value, tirx.max) if lanes == LANES else zero
            for lane in range(lanes if lanes < LANES else 0):
                largest = tirx.max(largest, shuffle(fault.value, [lane]) if lanes > 1 else fault.value)
            with k.when(largest > zero):
                k.store(self.beyond, const(0, "int64"), const(1, "int32"))

    def _slot(self, token: Expr, head: Expr) -> _Slot:
        k, shape = self.k, self.shape
        slot = k.let(cast(self.slots.load(token), "int64"), "slot")
        place = k.let(slot % PAGE_TOKENS, "place")
        base = k.let((slot // PAGE_TOKENS) * self.page + (self.layer + head) * shape.page_head, "base")
        key = k.let(base + (place // LANES) * (shape.padded_dim * LANES) + place % LANES, "key")
        value = k.let(base + PAGE_TOKENS * shape.padded_dim + place * shape.padded_dim, "value")
        return _Slot(key, value, ((base + shape.page_scales) >> const(2, "int64")) + place)

    def _write_value(self, start: Expr, slot: _Slot) -> None:
        k, shape = self.k, self.shape
        if shape.kv_dtype == "i8":
            self._round(self.value, start, self.cache, slot.value, slot.key_scale + PAGE_TOKENS)
            return
        whole = shape.head_dim // LANES * LANES
        for d in range(0, whole, LANES):
            k.store(self.cache, slot.value + d, self._stored(self._watch(self.value.load(start + d, LANES))))
        for d in range(whole, shape.head_dim):
            k.store(self.cache, slot.value + d, self._stored(self._watch(self.value.load(start + d))))

    def _keep_key(self, token: Expr, start: Expr, slot: _Slot, row: Expr) -> None:
        """A rotated key, as the cache has it, goes to self.rows[row…]."""
        k, shape = self.k, self.shape
        for d, values in rotated_head(k, shape, self.key, start, self.rope, token, self.norm):
            if self.rotated is None:
                k.store(self.rows, row + d, self._stored(self._watch(values)))
            else:
                k.store(self.rotated, d, values)
        if self.rotated is not None:
            self._round(self.rotated, const(0, "int64"), self.rows, row, slot.key_scale)

    def _write_key(self, slot: _Slot, row: Expr) -> None:
        """A key alone: its channels lie apart."""
        k, whole = self.k, self.shape.head_dim // LANES * LANES
        with k.loop(const(whole // LANES, "int64"), "vector") as v:
            d = k.let(v * LANES, "d")
            values = k.let(self.rows.load(row + d, LANES), "values")
            for lane in range(LANES):
                k.store(self.cache, slot.key + (d + lane) * LANES, shuffle(values, [lane]))
        for d in range(whole, self.shape.head_dim):
            k.store(self.cache, slot.key + d * LANES, self.rows.load(row + d))

    def _write_keys(self, first: _Slot) -> None:
        """The keys of a whole tile, transposed: channel by channel a vector of its tokens."""
        k, shape = self.k, self.shape
        width = max(TILE_TOKENS, 16 // shape.element_bytes)  # SIMD registers have 16 bytes or more
        whole = shape.head_dim // width * width
        with k.loop(const(whole // width, "int64"), "vector") as v:
            self._write_channels(first, k.let(v * width, "d"), width, width)
        if whole < shape.head_dim:
            self._write_channels(first, const(whole, "int64"), width, shape.head_dim - whole)

    def _write_channels(self, first: _Slot, begin: Expr, width: int, count: int) -> None:
        """The first `count` of `width` channels."""
        k, shape = self.k, self.shape
        vectors = [k.let(self.rows.load(begin + t * shape.padded_dim, width), "row") for t in range(TILE_TOKENS)]
        in_turns = [lane // 2 + lane % 2 * width for lane in range(2 * width)]
        for _ in range(TILE_TOKENS.bit_length() - 1):
            # Every step halves the distance, in lanes and vectors, between tokens that were neighbours at first.
            pairs = list(zip(vectors[: TILE_TOKENS // 2], vectors[TILE_TOKENS // 2 :], strict=True))
            parts = in_turns[:width], in_turns[width:]
            vectors = [k.let(shuffle_pair(pair, part), "zipped") for pair in pairs for part in parts]
        for d in range(count):
            vector, lane = divmod(d * TILE_TOKENS, width)
            channel = shuffle(vectors[vector], range(lane, lane + TILE_TOKENS))
            k.store(self.cache, first.key + (begin + d) * LANES, channel)

    def _round(self, x: Pointer, start: Expr, to: Pointer, place: Expr, scale_place: Expr) -> None:
        """The codes of a head, x[start…], go to to[place…], and their scale into the cache (docs/numerics.md)."""
        k, shape = self.k, self.shape
        whole = shape.head_dim // LANES * LANES
        largest = k.register(const(0.0, f"float32x{LANES}"), "largest")
        with k.loop(const(whole // LANES, "int64"), "vector") as v:
            k.set(largest, tirx.max(largest.value, magnitude(self._watch(x.load(start + v * LANES, LANES)))))
        amax = k.register(horizontal(k, largest.value, tirx.max), "amax")
        for d in range(whole, shape.head_dim):
            k.set(amax, tirx.max(amax.value, intrinsic("float32", "llvm.fabs", self._watch(x.load(start + d)))))
        scale, inverse = symmetric_scale(k, amax.value)
        k.store(self.scales, scale_place, scale)
        with k.loop(const(whole // LANES, "int64"), "vector") as v:
            codes = nearest(self.level, x.load(start + v * LANES, LANES) * broadcast(inverse, LANES))
            k.store(to, place + v * LANES, cast(codes, f"int8x{LANES}"))
        for d in range(whole, shape.head_dim):
            code = intrinsic("float32", "llvm.nearbyint", x.load(start + d) * inverse)
            k.store(to, place + d, cast(cast(code, "int32"), "int8"))

    def _stored(self, values: Expr) -> Expr:
        """Floats rounded to those of the cache."""
        return cast(values, dtype_of(values).replace("float32", self.shape.element_dtype))
