"""Rotary embedding against transformers, attention over the paged cache against torch in float64."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.kernel_inputs import guarded
from smc.codegen.cpu.build import build_kernel
from smc.codegen.kernels.abi import SPLIT_TOKENS, AttentionShape
from smc.codegen.kernels.layout import padded
from smc.codegen.kernels.specs import AttentionKernel, MergeKernel, RopeKernel
from smc.ir import RopeTable
from smc.reference.exact import compute_exactly
from smc.reference.exact.attention import HeadCodes
from smc.targets import Level

PAGE, LAYERS, LAYER = 64, 3, 1
DTYPES = {"f16": np.float16, "f32": np.float32, "i8": np.int8}

SHAPES = [
    AttentionShape(9, 3, 64, "f16"),
    AttentionShape(8, 1, 128, "f16"),
    AttentionShape(3, 3, 80, "f32"),
    AttentionShape(6, 2, 24, "f32"),
    AttentionShape(2, 2, 16, "f16"),
    AttentionShape(8, 1, 96, "f32"),
    AttentionShape(11, 1, 16, "f32"),
    AttentionShape(6, 3, 64, "i8"),
    AttentionShape(3, 3, 24, "i8"),
]
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 200, 257, 520]


class Cache:
    """Pages of a KV cache in random order, full of garbage but for what is written; built from what program.h says."""

    def __init__(self, shape: AttentionShape, lengths: Sequence[int], seed: int, garbage: float = 1000.0) -> None:
        rng = np.random.default_rng(seed)
        self.shape, counts = shape, [-(-length // PAGE) for length in lengths]
        order = rng.permutation(sum(counts) + 1)[1:].astype(np.int32)
        self.tables = guarded(order)
        self.begins = np.cumsum([0, *counts])[:-1]  # of each sequence's table
        page_shape = (LAYERS, shape.kv_heads, shape.page_head)
        noise = np.random.default_rng(int(garbage)).uniform(-garbage, garbage, (len(order) + 1, *page_shape))
        if shape.kv_dtype == "i8":
            noise = noise % 256 - 128
        self.memory = guarded(noise.astype(DTYPES[shape.kv_dtype]))
        self.page, self.layer = self.memory[0].nbytes, LAYER * shape.kv_heads
        heads = (shape.kv_heads, shape.head_dim)
        self.keys, self.values = ([rng.standard_normal((n, *heads)) for n in lengths] for _ in range(2))
        for sequence, length in enumerate(lengths):
            for index in range(length):
                page, place = self.tables[self.begins[sequence] + index // PAGE], index % PAGE
                self.write(page, place, self.keys[sequence][index], self.values[sequence][index])

    def write(
        self, page: int, place: int, key: np.ndarray, value: np.ndarray, memory: np.ndarray | None = None
    ) -> None:
        """Put a key and a value [kv_heads, head_dim] into a slot, of a copy of the memory if one is given."""
        memory = self.memory if memory is None else memory
        if self.shape.kv_dtype == "i8":
            scales = memory[page, LAYER, :, self.shape.page_scales :].view(np.float32).reshape(-1, 2, PAGE)
            (key, scales[:, 0, place]), (value, scales[:, 1, place]) = rounded(key), rounded(value)
        slots = self.slot(page, place, memory)
        slots[0][...], slots[1][...] = key, value

    def stored(self, x: np.ndarray) -> np.ndarray:
        """Keys or values [tokens, kv_heads, head_dim] as they are read again."""
        if self.shape.kv_dtype == "i8":
            codes, scales = rounded(x)
            return codes * scales[..., None].astype(np.float64)
        return x.astype(DTYPES[self.shape.kv_dtype]).astype(np.float64)

    def slot(self, page: int, place: int, memory: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Views of the key and the value of a slot, in a copy of the memory if one is given: [kv_heads, head_dim]."""
        head = (self.memory if memory is None else memory)[page, LAYER][:, : self.shape.page_scales]
        head = head.reshape(self.shape.kv_heads, 2, -1)
        assert np.shares_memory(head, self.memory if memory is None else memory)
        keys = head[:, 0].reshape(-1, PAGE // 16, self.shape.padded_dim, 16)
        values = head[:, 1].reshape(-1, PAGE, self.shape.padded_dim)
        return keys[:, place // 16, : self.shape.head_dim, place % 16], values[:, place, : self.shape.head_dim]


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes like x and scales by head, as docs/numerics.md rounds activations: x is float32 or rounded to it."""
    x = x.astype(np.float32)
    amax = np.abs(x).max(-1)
    codes = np.rint(x * (np.float32(127) / amax)[..., None])
    return codes.astype(np.int8), amax / np.float32(127)


# ---- rope

THETA = 1e4


def rope_table(shape: AttentionShape) -> RopeTable:
    frequencies = THETA ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim)
    return RopeTable(tuple(map(float, frequencies.astype(np.float32))))


def cosines_and_sines(shape: AttentionShape, positions: Sequence[int]) -> np.ndarray:
    """The engine's table of some tokens: [tokens][2][head_dim/2]."""
    frequencies = np.array(rope_table(shape).frequencies, np.float32)
    angles = (np.array(positions, np.float32)[:, None] * frequencies).astype(np.float64)
    return guarded(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32))


def rotated(x: np.ndarray, shape: AttentionShape, positions: Sequence[int]) -> np.ndarray:
    """The exact reference's rotation of float32 [tokens, heads * head_dim], close to that of transformers."""
    if not shape.rotary:
        return x
    attributes = {"head_dim": shape.head_dim, "table": rope_table(shape)}
    result = compute_exactly("rope", [torch.from_numpy(x), torch.tensor(positions)], attributes).numpy()
    rope = torch.from_numpy(cosines_and_sines(shape, positions))
    cosines, sines = (torch.cat([rope[:, i], rope[:, i]], -1)[None] for i in (0, 1))
    heads = torch.from_numpy(x).view(len(x), -1, shape.head_dim).transpose(0, 1)[None]
    theirs, _ = apply_rotary_pos_emb(heads, heads, cosines, sines)
    np.testing.assert_allclose(result, theirs[0].transpose(0, 1).reshape(x.shape).numpy(), rtol=0, atol=1e-6)
    return result


WRITTEN_TILES = [(0, 8), (8, 8), (20, 8), (62, 3), (72, 1), (80, 7), (125, 8), (184, 8)]
"""Cache index and tokens: whole tiles that lie together in a page, and others: across pages, short, or unaligned."""


@pytest.mark.parametrize("shape", [*SHAPES, AttentionShape(4, 2, 20, "f16", rotary=False)], ids=str)
def test_keys_are_rotated_and_written(build: Any, level: Level, shape: AttentionShape) -> None:
    kernel, rng = build(level, build_kernel(RopeKernel(shape), "write", level))["write"], np.random.default_rng(1)
    cache = Cache(shape, [200], 2)
    expected_memory = cache.memory.copy()
    indices = [index for first, count in WRITTEN_TILES for index in range(first, first + count)]
    tokens, positions = len(indices), [3 * index for index in indices]
    first_tokens = np.cumsum([0, *(count for _, count in WRITTEN_TILES)])
    rows = [[first_tokens[n], count, 0, index] for n, (index, count) in enumerate(WRITTEN_TILES)]
    slots = np.array([cache.tables[i // PAGE] * PAGE + i % PAGE for i in indices], np.int32)
    width = shape.kv_heads * shape.head_dim
    k, v = (rng.standard_normal((tokens, width)).astype(np.float32) for _ in range(2))
    stride = padded(width, 32)
    k_rows, v_rows = (guarded(np.pad(x, ((0, 0), (0, stride - width)), constant_values=np.nan)) for x in (k, v))
    arrays = [k_rows, v_rows, cosines_and_sines(shape, positions), guarded(slots), guarded(np.array(rows, np.int32))]
    beyond = guarded(np.zeros(1, np.int32))
    for begin, end in ((0, 1), (1, len(rows) * shape.kv_heads)):
        kernel(*arrays, cache.memory, cache.memory, beyond, stride, cache.page, cache.layer, begin, end)
    assert beyond[0] == 0
    heads = (shape.kv_heads, shape.head_dim)
    for token, key in enumerate(rotated(k, shape, positions)):
        place = (slots[token] // PAGE, slots[token] % PAGE)
        cache.write(*place, key.reshape(heads), v[token].reshape(heads), expected_memory)
    np.testing.assert_array_equal(cache.memory, expected_memory)


@pytest.mark.parametrize(
    "shape", [SHAPES[0], SHAPES[3], SHAPES[8], AttentionShape(4, 2, 20, "f16", rotary=False)], ids=str
)
def test_what_the_cache_cannot_hold_is_told(build: Any, level: Level, shape: AttentionShape) -> None:
    """Wherever it is, in a key or a value; the largest that can be held is not told."""
    kernel = build(level, build_kernel(RopeKernel(shape), "write", level))["write"]
    cache, tokens, width = Cache(shape, [64], 2), 9, shape.kv_heads * shape.head_dim
    rows = guarded(np.array([[0, 8, 0, 0], [8, 1, 0, 8]], np.int32))
    slots = guarded((cache.tables[0] * PAGE + np.arange(tokens)).astype(np.int32))
    rope = np.zeros((tokens, 2, shape.head_dim // 2), np.float32)
    rope[:, 0] = 1  # no rotation, so that a key is what is written
    stride, beyond = padded(width, 32), guarded(np.zeros(1, np.int32))
    largest, least_beyond = (65519.0, 65520.0) if shape.kv_dtype == "f16" else (np.finfo(np.float32).max, np.inf)
    for place, sign in itertools.product([0, 1, 15, 16, 19, shape.head_dim - 1, width - 1], [1, -1]):
        for bad, told in ((largest, 0), (least_beyond, 1), (np.inf, 1), (np.nan, 1)):
            for of_key, token in itertools.product((True, False), (0, 7, 8)):
                k, v = (np.pad(np.ones((tokens, width)), ((0, 0), (0, stride - width))) for _ in range(2))
                (k if of_key else v)[token, place] = sign * bad
                k_rows, v_rows = (guarded(x.astype(np.float32)) for x in (k, v))
                beyond[0] = 0
                arrays = [k_rows, v_rows, guarded(rope), slots, rows, cache.memory, cache.memory, beyond]
                kernel(*arrays, stride, cache.page, cache.layer, 0, 2 * shape.kv_heads)
                assert beyond[0] == told, (place, sign * bad, of_key, token)


# ---- attention


class Attention:
    """The built kernels and calls to them."""

    def __init__(self, build: Any, level: Level, shape: AttentionShape) -> None:
        self.shape = shape
        attention = build_kernel(AttentionKernel(shape), "attention", level)
        kernels = build(level, attention, build_kernel(MergeKernel(shape), "merge", level))
        self.kernel, self.merge = kernels["attention"], kernels["merge"]
        self.stride = padded(shape.heads * shape.head_dim, 32) + 32

    def __call__(
        self,
        cache: Cache,
        q: np.ndarray,
        tiles: list[list[int]],
        window: int = 0,
        scale: float = 0.2,
        split: bool = False,
        rope: np.ndarray | None = None,
    ) -> np.ndarray:
        """tiles: (sequence, index of its first token, count); q: [tokens, heads, head_dim]. Result like q.

        split: every split of the cache in a block of its own. rope: cosines and sines; by default q stays as it is.
        """
        shape = self.shape
        full = np.full((len(q), self.stride), np.nan, np.float32)
        width = shape.heads * shape.head_dim
        full[:, :width] = q.reshape(len(q), width)
        first = np.cumsum([0, *(count for _, _, count in tiles)])
        rows = [[first[n], count, cache.begins[s], index] for n, (s, index, count) in enumerate(tiles)]
        splits = max(-(-(index + count) // SPLIT_TOKENS) for _, index, count in tiles) if split else 1
        partials = guarded(np.full(len(q) * splits * shape.heads * shape.state_floats, np.nan, np.float32))
        out = guarded(np.full_like(full, np.nan))
        scratch = guarded(np.full(shape.scratch_floats, np.nan, np.float32))
        q_buffer, table = guarded(full), guarded(np.array(rows, np.int32))
        rope = cosines_and_sines(shape, [0] * len(q)) if rope is None else rope
        for begin, end in halves(len(tiles) * shape.kv_heads * splits):
            self.kernel(
                q_buffer, rope, cache.memory, cache.memory, cache.tables, table, out, partials, scratch,
                self.stride, cache.page, cache.layer, scale * math.log2(math.e), window, splits, begin, end,
            )  # fmt: skip
        if splits > 1:
            for begin, end in halves(len(tiles) * shape.heads):
                self.merge(table, partials, out, scratch, self.stride, window, splits, begin, end)
        assert not out[:, width:].any()
        return out[:, :width].reshape(q.shape).copy()


def halves(blocks: int) -> list[tuple[int, int]]:
    return [(0, blocks // 2), (blocks // 2, blocks)]


@pytest.fixture(scope="module")
def attention(build: Any) -> Callable[[Level, AttentionShape], Attention]:
    """(level, shape) → the kernel, built once."""
    built: dict[tuple[Level, AttentionShape], Attention] = {}

    def get(level: Level, shape: AttentionShape) -> Attention:
        if (level, shape) not in built:
            built[level, shape] = Attention(build, level, shape)
        return built[level, shape]

    return get


def queries(shape: AttentionShape, tokens: int, size: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(tokens).standard_normal((tokens, shape.heads, shape.head_dim)) * size).astype(
        np.float32
    )


def expected(cache: Cache, q: np.ndarray, tiles: list[list[int]], window: int, scale: float = 0.2) -> np.ndarray:
    """torch's attention in float64 for every token of the tiles."""
    shape, results, token = cache.shape, [], 0
    group = shape.heads // shape.kv_heads
    for sequence, index, count in tiles:
        length = index + count
        keys, values = (
            torch.tensor(cache.stored(x[sequence][:length])).transpose(0, 1).repeat_interleave(group, 0)
            for x in (cache.keys, cache.values)
        )
        own = torch.tensor(q[token : token + count]).double().transpose(0, 1)
        positions = torch.arange(length)
        distance = positions[index:, None] - positions[None]
        mask = (distance >= 0) & (distance < window) if window else distance >= 0
        result = torch.nn.functional.scaled_dot_product_attention(own, keys, values, attn_mask=mask, scale=scale)
        results.append(result.transpose(0, 1).numpy())
        token += count
    return np.concatenate(results)


def last_tiles(lengths: Sequence[int], count: int) -> list[list[int]]:
    """For every sequence a tile of its last tokens."""
    return [[n, max(0, length - count), min(length, count)] for n, length in enumerate(lengths)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention(attention: Any, level: Level, shape: AttentionShape) -> None:
    cache = Cache(shape, LENGTHS, 3)
    for count, windows in ((1, (0,)), (3, (0, 1, 70)), (8, (0, 5, 64))):
        tiles = last_tiles(LENGTHS, count)
        q = queries(shape, sum(tile[2] for tile in tiles))
        for window in windows:
            result = attention(level, shape)(cache, q, tiles, window)
            np.testing.assert_allclose(result, expected(cache, q, tiles, window), rtol=0, atol=1e-5)


def exact_inputs(shape: AttentionShape, length: int) -> tuple[Cache, np.ndarray]:
    return Cache(shape, [length], 7), queries(shape, length, 3.0)


@functools.cache
def exact_attention(shape: AttentionShape, length: int, window: int) -> np.ndarray:
    """What the exact reference computes for a whole sequence: [tokens, heads · head_dim]."""
    cache, q = exact_inputs(shape, length)
    stored: list[Any] = []
    for x in (cache.keys[0], cache.values[0]):
        if shape.kv_dtype == "i8":
            codes, scales = map(torch.from_numpy, rounded(x))
            stored.append(HeadCodes(codes.float().flatten(1), scales))
        else:
            stored.append(torch.from_numpy(x.astype(DTYPES[shape.kv_dtype])).float().flatten(1))
    attributes = {"heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "scale": 0.2}
    inputs = [torch.from_numpy(q).flatten(1), *stored]
    result = compute_exactly("attention", inputs, {**attributes, "window": window or None})
    return result.numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_has_the_bits_of_the_exact_reference(attention: Any, level: Level, shape: AttentionShape) -> None:
    length = 80 if shape.kv_heads < shape.heads else 530  # three splits
    cache, q = exact_inputs(shape, length)
    tiles = [[0, index, min(8, length - index)] for index in range(0, length, 8)]
    for window in (0, 20):
        result = attention(level, shape)(cache, q, tiles, window)
        np.testing.assert_array_equal(result.reshape(length, -1), exact_attention(shape, length, window))


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[3], SHAPES[8]], ids=str)
@pytest.mark.parametrize("split", [False, True])
def test_queries_are_rotated(attention: Any, level: Level, shape: AttentionShape, split: bool) -> None:
    cache, tiles = Cache(shape, [300, 20], 9), [[0, 290, 8], [1, 17, 3]]
    q, positions = queries(shape, 11), [5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2000]
    kernel, rope = attention(level, shape), cosines_and_sines(shape, positions)
    turned = rotated(q.reshape(11, -1), shape, positions).reshape(q.shape)
    np.testing.assert_array_equal(
        kernel(cache, q, tiles, split=split, rope=rope), kernel(cache, turned, tiles, split=split)
    )


def test_without_rotation_queries_stay(attention: Any, level: Level) -> None:
    shape = AttentionShape(4, 2, 20, "f16", rotary=False)
    cache, tiles, q = Cache(shape, [70], 9), [[0, 65, 5]], queries(shape, 5)
    nowhere = guarded(np.full((5, 2, 10), np.nan, np.float32))
    result = attention(level, shape)(cache, q, tiles, rope=nowhere)
    np.testing.assert_allclose(result, expected(cache, q, tiles, 0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 30.0, 1000.0])
def test_flat_and_peaked_attention(attention: Any, level: Level, size: float) -> None:
    shape = SHAPES[0]
    cache = Cache(shape, [200, 64], 4)
    tiles = [[0, 192, 8], [1, 60, 4]]
    q = queries(shape, 12, size)
    result = attention(level, shape)(cache, q, tiles)
    # Scores of thousands are a few ten-thousandths off in float32, and so are their weights.
    np.testing.assert_allclose(result, expected(cache, q, tiles, 0), rtol=0, atol=1e-5 + 1e-6 * size)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [0, 40])
def test_bits_do_not_depend_on_the_tile(attention: Any, level: Level, shape: AttentionShape, window: int) -> None:
    cache = Cache(shape, [200, 67], 5)
    q = queries(shape, 16)
    together = attention(level, shape)(cache, q, [[0, 100, 8], [1, 59, 8]], window)
    for token in range(16):
        sequence, index = (0, 100 + token) if token < 8 else (1, 51 + token)
        alone = attention(level, shape)(cache, q[token : token + 1], [[sequence, index, 1]], window)
        np.testing.assert_array_equal(alone[0], together[token])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [0, 40, 300])
def test_bits_do_not_depend_on_who_merges(attention: Any, level: Level, shape: AttentionShape, window: int) -> None:
    """Splits one after the other in a block, or in blocks of their own: sequences of one, two and three splits."""
    cache, tiles = Cache(shape, [700, 258, 30], 8), [[0, 692, 8], [1, 252, 6], [2, 29, 1]]
    q = queries(shape, 15)
    results = [attention(level, shape)(cache, q, tiles, window, split=split) for split in (False, True)]
    np.testing.assert_array_equal(*results)
    np.testing.assert_allclose(results[0], expected(cache, q, tiles, window), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_what_lies_in_unwritten_slots_does_not_matter(attention: Any, level: Level, shape: AttentionShape) -> None:
    q, tiles = queries(shape, 10), [[0, 62, 8], [1, 0, 2]]
    results = [attention(level, shape)(Cache(shape, [70, 2], 6, garbage), q, tiles) for garbage in (1, 60000)]
    np.testing.assert_array_equal(*results)
