"""Rotary embedding, and the write of K and V into the KV cache."""

from __future__ import annotations

import tvm.tirx as tirx

from smc.codegen.kernels.builder import Expr, Kernel, Pointer, cast, const, dtype_of, fma, intrinsic, shuffle
from smc.codegen.kernels.sink import symmetric_scale
from smc.codegen.kernels.specs import PAGE_TOKENS, AttentionShape
from smc.codegen.kernels.vector_math import LANES, horizontal, magnitude


def rope_kernel(name: str, shape: AttentionShape) -> Kernel:
    """int32_t name(q, k, v, rope, slots, cache, scales, q_stride, kv_stride, page, layer, begin, end)

    Blocks are (token, KV head): rotates the head's group of q in place, rotates k and writes k and v into the cache.
    rope: float32 [tokens][2][head_dim/2] cosines and sines; slots: int32 [tokens]; cache: all pages; scales: the
    same memory, for those of an int8 cache; page: bytes of a page; layer: KV heads in front of this layer's.
    """
    k = Kernel(name)
    q, key, value = (k.pointer(n, "float32") for n in ("q", "k", "v"))
    rope, slots = k.pointer("rope", "float32"), k.pointer("slots", "int32")
    cache, scales = k.pointer("cache", shape.element_dtype), k.pointer("scales", "float32")
    scales.written = True  # by the kernels of one dtype: the others must have the same C parameters
    q_stride, kv_stride = k.scalar("q_stride"), k.scalar("kv_stride")
    page, layer = k.scalar("page", "int64"), k.scalar("layer", "int64")
    begin, end = k.scalar("begin"), k.scalar("end")
    half, group = shape.head_dim // 2, shape.group
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
        base = k.let((slot // PAGE_TOKENS) * (page // shape.element_bytes) + (layer + head) * shape.page_head, "base")
        k_base = k.let(base + (place // LANES) * (shape.padded_dim * LANES) + place % LANES, "k_base")
        v_base = k.let(base + PAGE_TOKENS * shape.padded_dim + place * shape.padded_dim, "v_base")
        if shape.kv_dtype == "i8":
            scale_base = k.let(((base + shape.page_scales) >> const(2, "int64")) + place, "scale_base")
            _store_codes(k, shape, key, source, cache, k_base, LANES, scales, scale_base)
            _store_codes(k, shape, value, source, cache, v_base, 1, scales, k.let(scale_base + PAGE_TOKENS, "v_scale"))
        else:
            _store_floats(k, shape, key, source, cache, k_base, LANES)
            _store_floats(k, shape, value, source, cache, v_base, 1)
    return k


def _store_floats(
    k: Kernel, shape: AttentionShape, x: Pointer, source: Expr, cache: Pointer, place: Expr, step: int
) -> None:
    """A head of K or V in the cache's type, `step` elements apart: converted as vectors."""
    whole = shape.head_dim // LANES * LANES
    with k.loop(const(whole // LANES, "int64"), "vector") as v:
        d = k.let(v * LANES, "d")
        values = k.let(cast(x.load(source + d, LANES), f"{cache.dtype}x{LANES}"), "values")
        if step == 1:
            k.store(cache, place + d, values)
        else:
            for lane in range(LANES):
                k.store(cache, place + (d + lane) * step, shuffle(values, [lane]))
    for d in range(whole, shape.head_dim):
        k.store(cache, place + d * step, cast(x.load(source + d), cache.dtype))


def _store_codes(
    k: Kernel,
    shape: AttentionShape,
    x: Pointer,
    source: Expr,
    cache: Pointer,
    place: Expr,
    step: int,
    scales: Pointer,
    scale_place: Expr,
) -> None:
    """A head of K or V as int8 codes, `step` elements apart, with one scale."""
    whole = shape.head_dim // LANES * LANES
    largest = k.register(const(0.0, f"float32x{LANES}"), "largest")
    with k.loop(const(whole // LANES, "int64"), "vector") as v:
        k.set(largest, tirx.max(largest.value, magnitude(k.let(x.load(source + v * LANES, LANES), "x"))))
    amax = k.register(horizontal(k, largest.value, tirx.max), "amax")
    for d in range(whole, shape.head_dim):
        k.set(amax, tirx.max(amax.value, intrinsic("float32", "llvm.fabs", x.load(source + d))))
    scale, inverse = symmetric_scale(k, amax.value)
    k.store(scales, scale_place, scale)
    with k.loop(const(shape.head_dim, "int64"), "d") as d:
        code = intrinsic("float32", "llvm.nearbyint", x.load(source + d) * inverse)
        k.store(cache, place + d * step, cast(cast(code, "int32"), "int8"))


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
