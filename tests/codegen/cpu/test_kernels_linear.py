"""The matmul kernels against numpy in float64: every kind of encoding, odd shapes, extreme codes, on every level."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kernel_inputs import Matrix, guarded, kernel_inputs, random_tensor
from smc.cli.doctor import read_cpuinfo
from smc.codegen.cpu.build import build_kernel
from smc.codegen.cpu.kernels.many_tokens import CHUNK_TOKENS, MANY_TOKENS
from smc.codegen.cpu.tiles import default_tile, panel_tiles
from smc.codegen.kernels.abi import ACCUMULATE, COMPACT, HAS_BIAS
from smc.codegen.kernels.layout import ROW_BLOCK, padded
from smc.codegen.kernels.specs import LinearKernel, Tile
from smc.ir import BF16, F16, Encoding, integer
from smc.reference.exact.linear import multiply
from smc.targets import TARGETS, Level
from tests.codegen.cpu.kernels import compiled
from tests.codegen.encodings import ALL_FLOAT_LEVELS, ENCODINGS, encodings


class Linear:
    """Built kernels, and calls to them."""

    def __init__(self, build: Any) -> None:
        self.build = build
        self.kernels: dict[tuple[Encoding, Level, Tile | None], Any] = {}

    def kernel(self, encoding: Encoding, level: Level, tile: Tile | None = None) -> Any:
        key = (encoding, level, tile)
        if key not in self.kernels:
            self.kernels[key] = self.build(level, build_kernel(LinearKernel(encoding, tile), "linear", level))["linear"]
        return self.kernels[key]

    def __call__(
        self,
        kernel: Any,
        matrix: Matrix,
        inputs: tuple[np.ndarray, np.ndarray, np.ndarray],
        *,
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        cuts: tuple[int, ...] = (),
        prefetch_distance: int = 0,
    ) -> np.ndarray:
        """Result float32 [tokens, padded rows]; the row blocks computed in pieces that end at `cuts`."""
        layout, tokens = matrix.layout, inputs[0].shape[0]
        out = guarded(np.full((tokens, layout.padded_rows), np.nan, np.float32) if residual is None else residual)
        flags = (HAS_BIAS if bias is not None else 0) | (ACCUMULATE if residual is not None else 0)
        bias = guarded(np.zeros(0, np.float32) if bias is None else bias)
        edges = [0, *sorted(cuts), layout.padded_rows // ROW_BLOCK]
        x_stride = padded(layout.columns, 32)
        for begin, end in itertools.pairwise(edges):
            kernel(
                *inputs, matrix.codes, matrix.scales, matrix.zeros, bias, out,
                tokens, layout.columns, x_stride, layout.padded_rows, flags, prefetch_distance, begin, end,
            )  # fmt: skip
        return out.copy()


@pytest.fixture(scope="module")
def linear(build: Any) -> Linear:
    return Linear(build)


def check(
    linear: Linear, encoding: Encoding, level: Level, shape: tuple[int, int, int], seed: int, extreme: bool
) -> None:
    """One product against float64, and bit for bit against the exact reference."""
    rows, columns, tokens = shape
    matrix = Matrix(random_tensor(encoding, rows, columns, seed, extreme), level.family)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, columns))
    if extreme:  # every input at ±127 after rounding, rows of one sign among them
        x = np.sign(x)
        x[tokens // 2] = 1
    inputs, rounded = kernel_inputs(encoding, level, x.astype(np.float32))
    out = linear(linear.kernel(encoding, level), matrix, inputs)
    expected = rounded @ matrix.values.T
    # Sums that cancel are as exact as what is summed: offsets and zeros count by their own size, and a single sum of a
    # few products, which may be next to nothing, by six roundings of these.
    summed = (np.abs(rounded) @ np.abs(matrix.values.T)).max()
    close = 1e-5 * summed if extreme else max(1e-5 * np.abs(expected).max(), 6 * 2**-24 * summed)
    np.testing.assert_allclose(out[:, :rows], expected, rtol=0, atol=close)
    assert not out[:, rows:].any()
    exact = multiply(torch.from_numpy(x.astype(np.float32)), matrix.tensor)
    np.testing.assert_array_equal(out[:, :rows], exact.numpy())


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_products(linear: Linear, level: Level, encoding: Encoding) -> None:
    for seed, shape in enumerate([(33, 80, 6), (64, 341, 1), (1, 8, 3), (40, 577, 27)]):
        for extreme in (False, True):
            check(linear, encoding, level, shape, seed, extreme)


@pytest.mark.parametrize(
    "encoding",
    [
        integer(4),
        integer(8, symmetric=False, group=64),
        integer(3, group=16),
        Encoding.of("base3", group="tensor", activation_group="token"),
    ],
    ids=str,
)
def test_products_of_avx_vnni_in_the_encoding_of_avx512(linear: Linear, encoding: Encoding) -> None:
    """The same operations; more CPUs have this form of the instruction, of those that test."""
    _, features = read_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    if "avx512vnni" not in features:
        pytest.skip("this CPU has no AVX-512 VNNI")
    [level] = [level for level in TARGETS["x86-64"].levels if level.name == "avxvnni"]
    evex = ["avx512f", "avx512vl", "avx512vnni"]
    level = replace(level, features=(*(f for f in level.features if f != "avxvnni"), *evex))
    for extreme in (False, True):
        for tokens in (5, MANY_TOKENS + 3):
            check(linear, encoding, level, (40, 341, tokens), 0, extreme)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(encoding=encodings(), data=st.data())
def test_products_of_any_encoding(linear: Linear, level: Level, encoding: Encoding, data: st.DataObject) -> None:
    check_drawn(linear, level, encoding, data)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(encoding=encodings(), data=st.data())
def test_products_of_many_encodings(linear: Linear, level: Level, encoding: Encoding, data: st.DataObject) -> None:
    check_drawn(linear, level, encoding, data)


def check_drawn(linear: Linear, level: Level, encoding: Encoding, data: st.DataObject) -> None:
    shapes = st.tuples(st.sampled_from([1, 16, 33, 341]), st.sampled_from([8, 80, 341, 576, 577]), st.integers(1, 27))
    for shape in data.draw(st.lists(shapes, min_size=3, max_size=3)):
        check(linear, encoding, level, shape, data.draw(st.integers(0, 99)), data.draw(st.booleans()))


INTEGERS = [encoding for encoding in ENCODINGS if encoding.rounds_inputs]


@pytest.mark.parametrize(
    "encoding",
    [pytest.param(e, marks=[pytest.mark.slow] if i % 4 else [], id=str(e)) for i, e in enumerate(INTEGERS)],
)
def test_products_of_many_tokens(linear: Linear, level: Level, encoding: Encoding) -> None:
    """With the weights unpacked for all of them, and without; some tokens fill no tile, or no chunk."""
    if panel_tiles(encoding, level) is None:
        pytest.skip("weights are not unpacked for all tokens")
    default = default_tile(encoding, level)
    other = replace(default, panel=not default.panel)
    matrix = Matrix(random_tensor(encoding, 40, 600, 1, extreme=True), level.family)
    for tokens in (MANY_TOKENS - 1, MANY_TOKENS, CHUNK_TOKENS + 7):
        x = np.random.default_rng(tokens).choice([-1, 1], (tokens, 600)).astype(np.float32)
        x[tokens // 2] = 1  # as in `check`
        inputs, _ = kernel_inputs(encoding, level, x)
        exact = multiply(torch.from_numpy(x), matrix.tensor).numpy()
        for tile in (default, other):
            out = linear(linear.kernel(encoding, level, tile), matrix, inputs)
            np.testing.assert_array_equal(out[:, :40], exact)


TILES = [Tile(1, 16), Tile(1, 32), Tile(2, 16), Tile(3, 32), Tile(4, 32), Tile(8, 16)]
PANEL_TILES = [Tile(1, 16, True), Tile(4, 32, True), Tile(6, 16, True)]
BLOCK_TILES = [Tile(8, 4), Tile(8, 8), Tile(8, 16), Tile(24, 8), Tile(48, 4), Tile(16, 4)]


@pytest.mark.slow
def test_products_of_256_float_levels(linear: Linear, level: Level) -> None:
    check(linear, Encoding.of(bits=8, codebook=ALL_FLOAT_LEVELS), level, (33, 80, 6), 0, extreme=False)


@pytest.mark.parametrize("encoding", ENCODINGS[::2], ids=str)
def test_bits_do_not_depend_on_tokens_beside_or_on_cuts(linear: Linear, level: Level, encoding: Encoding) -> None:
    matrix = Matrix(random_tensor(encoding, 100, 341, 1), level.family)
    x = np.random.default_rng(2).standard_normal((25, 341)).astype(np.float32)
    kernel, (inputs, _) = linear.kernel(encoding, level), kernel_inputs(encoding, level, x)
    together = linear(kernel, matrix, inputs)
    np.testing.assert_array_equal(linear(kernel, matrix, inputs, cuts=(1, 3)), together)
    for token in (0, 9, 24):
        alone, _ = kernel_inputs(encoding, level, x[token : token + 1])
        np.testing.assert_array_equal(linear(kernel, matrix, alone)[0], together[token])


@pytest.mark.parametrize("encoding", ENCODINGS[::3], ids=str)
def test_prefetches_change_no_bits(linear: Linear, level: Level, encoding: Encoding) -> None:
    """They reach far behind the matrix, where there is no memory."""
    matrix, kernel = Matrix(random_tensor(encoding, 100, 341, 1), level.family), linear.kernel(encoding, level)
    for tokens, distance in ((1, 64), (1, 12 << 10), (5, 1 << 20)):
        inputs, _ = kernel_inputs(encoding, level, np.random.default_rng(2).standard_normal((tokens, 341)))
        result = linear(kernel, matrix, inputs, prefetch_distance=distance)
        np.testing.assert_array_equal(result, linear(kernel, matrix, inputs))


@pytest.mark.parametrize("encoding", [integer(4, symmetric=False), F16, Encoding.of(bits=4, minimum=True)], ids=str)
def test_bits_do_not_depend_on_the_tile(linear: Linear, level: Level, encoding: Encoding) -> None:
    matrix = Matrix(random_tensor(encoding, 64, 80, 1), level.family)
    inputs, _ = kernel_inputs(encoding, level, np.random.default_rng(2).standard_normal((75, 80)).astype(np.float32))
    # Where activations are interleaved, blocks of 8 tokens must not be split.
    tiles = BLOCK_TILES if level.family == "arm64" and encoding.rounds_inputs else TILES
    tiles = tiles + PANEL_TILES if panel_tiles(encoding, level) else tiles
    results = [linear(linear.kernel(encoding, level, tile), matrix, inputs) for tile in tiles]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize(
    "encoding",
    [
        integer(8),
        integer(8, group="row", activation_group="token"),
        BF16,
        Encoding.of(bits=2, zero="stored", activation="none"),
        Encoding.of(bits=8, group="row", activation="none"),
    ],
    ids=str,
)
def test_bias_and_residual_are_added_to_the_finished_sum(linear: Linear, level: Level, encoding: Encoding) -> None:
    matrix, rng = Matrix(random_tensor(encoding, 41, 96, 3), level.family), np.random.default_rng(4)
    inputs, _ = kernel_inputs(encoding, level, rng.standard_normal((5, 96)).astype(np.float32))
    kernel, rows = linear.kernel(encoding, level), matrix.layout.padded_rows
    bias, residual = rng.standard_normal(rows).astype(np.float32), rng.standard_normal((5, rows)).astype(np.float32)
    plain = linear(kernel, matrix, inputs)
    np.testing.assert_array_equal(linear(kernel, matrix, inputs, bias=bias), plain + bias)
    np.testing.assert_array_equal(linear(kernel, matrix, inputs, residual=residual), plain + residual)
    both = linear(kernel, matrix, inputs, bias=bias, residual=residual, cuts=(1,))
    np.testing.assert_array_equal(both, (plain + bias) + residual)


@pytest.mark.parametrize("tokens", [1, 13])
def test_results_of_some_rows_alone(linear: Linear, level: Level, tokens: int) -> None:
    encoding, rng = integer(4, group=64), np.random.default_rng(tokens)
    matrix = Matrix(random_tensor(encoding, 150, 96, 3), level.family)
    kernel = linear.kernel(encoding, level)
    inputs, _ = kernel_inputs(encoding, level, rng.standard_normal((tokens, 96)).astype(np.float32))
    bias = rng.standard_normal(160).astype(np.float32)
    whole = linear(kernel, matrix, inputs, bias=bias)
    out = guarded(np.full((tokens, 96), np.nan, np.float32))
    kernel(
        *inputs, matrix.codes, matrix.scales, matrix.zeros, guarded(bias), out,
        tokens, 96, 96, 160, HAS_BIAS | COMPACT, 0, 1, 4,
    )  # fmt: skip
    np.testing.assert_array_equal(out, whole[:, 32:128])


def test_inputs_of_zeros_give_zeros(linear: Linear, level: Level) -> None:
    for encoding in (integer(4), Encoding.of(bits=4, activation="none")):
        matrix = Matrix(random_tensor(encoding, 33, 80, 5), level.family)
        inputs, _ = kernel_inputs(encoding, level, np.zeros((2, 80), np.float32))
        assert not linear(linear.kernel(encoding, level), matrix, inputs).any()


def test_no_token_and_no_block_writes_nothing(linear: Linear, level: Level) -> None:
    matrix = Matrix(random_tensor(integer(4), 33, 80, 5), level.family)
    inputs, _ = kernel_inputs(integer(4), level, np.ones((2, 80), np.float32))
    out = guarded(np.full((2, 64), 7, np.float32))
    kernel, bias = linear.kernel(integer(4), level), guarded(np.zeros(0, np.float32))
    arguments = (*inputs, matrix.codes, matrix.scales, matrix.zeros, bias, out)
    kernel(*arguments, 2, 80, 96, 64, 0, 0, 1, 1)
    kernel(*arguments, 0, 80, 96, 64, 0, 0, 0, 2)
    assert (out == 7).all()


@pytest.mark.parametrize(
    "encoding",
    [
        integer(4),
        integer(8, group="row", activation_group="token"),
        Encoding.of(bits=3, minimum=True, group=16),
        Encoding.of(bits=4, zero="stored", super_group=8),
        F16,
    ],
    ids=str,
)
def test_only_the_largest_results_are_kept(build: Any, linear: Linear, level: Level, encoding: Encoding) -> None:
    """Of each lane's rows, the lower one among equals; padding never counts, although its results are larger here."""
    rows, tokens, columns = 341, 11, 96
    matrix = Matrix(random_tensor(encoding, rows, columns, 6), level.family)
    rng = np.random.default_rng(7)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    x[3] = 0  # all results alike
    inputs, _ = kernel_inputs(encoding, level, x)
    bias = np.zeros(matrix.layout.padded_rows, np.float32)
    bias[:rows] = rng.integers(-1003, -1000, rows)
    results = linear(linear.kernel(encoding, level), matrix, inputs, bias=bias)[:, :rows]
    kernel = build(level, build_kernel(LinearKernel(encoding, argmax=True), "argmax", level))["argmax"]
    out = np.full((tokens, 32), -np.inf, np.float32)
    out[:, 16:] = np.array(2**31 - 1, np.int32).view(np.float32)
    out = guarded(out)
    for begin, end in ((7, 11), (0, 1), (5, 7), (1, 5)):
        kernel(
            *inputs, matrix.codes, matrix.scales, matrix.zeros, guarded(bias), out,
            tokens, columns, columns, rows, HAS_BIAS, 0, begin, end,
        )  # fmt: skip
    for lane in range(16):
        of_lane = results[:, lane::16]
        np.testing.assert_array_equal(out[:, lane], of_lane.max(1))
        np.testing.assert_array_equal(out[:, 16 + lane].copy().view(np.int32), of_lane.argmax(1) * 16 + lane)


def test_avx2_widens_int16_sums_once_a_tile() -> None:
    """Products of 4-bit codes fit int16 for a whole tile, and LLVM leaves the sums of tokens and rows alternating."""
    [level] = [level for level in TARGETS["x86-64"].levels if level.name == "avx2"]
    asm = compiled(build_kernel(LinearKernel(integer(4), Tile(4, 16)), "linear", level), level).inspect_source("asm")
    products = [re.findall("vpmaddubsw", part) for part in re.split("vpmaddwd", asm)]
    assert max(map(len, products)) == 4 * 2 * 8  # tokens, units of rows, quads
