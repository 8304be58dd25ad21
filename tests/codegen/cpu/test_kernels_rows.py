"""Norms, rounding to int8, element-wise ops and exp against numpy, transformers and docs/numerics.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from benchmarks.kernel_inputs import guarded, interleaved
from smc.codegen.cpu.build import build_kernel
from smc.codegen.cpu.builder import Expr, Kernel, const
from smc.codegen.cpu.kernels.vector_math import exp, exp2, tanh
from smc.codegen.kernels.abi import F32_FORM, Form
from smc.codegen.kernels.layout import padded
from smc.codegen.kernels.signature import Signature
from smc.codegen.kernels.specs import (
    ElementwiseKernel,
    KernelSpec,
    LayerNormKernel,
    QuantizeTokensKernel,
    RmsNormKernel,
)
from smc.ir import F32, EncodedTensor, rotate
from smc.ir.activations import ACTIVATIONS
from smc.reference import float32
from smc.reference.exact import compute_exactly
from smc.targets import Level

I8 = Form("i8")
I8_SUMS_OF_16 = Form("i8", sum_group=16)
WIDE = Form("i8", 128)
TOKEN = Form("i8", "token")
TURNED = Form("i8", rotation=32)

Rows = Callable[[np.ndarray], np.ndarray]


def function_kernel(function: Callable[[Kernel, Expr], Expr]) -> Kernel:
    """A function of vectors as a kernel of its name: (x, out, count)."""
    k = Kernel(function.__name__, Signature.of("const float *x", "float *out", "int32_t count"))
    x, out, count = k.pointer("x"), k.pointer("out"), k.scalar("count")
    with k.loop(count >> const(4, "int32")) as i:
        k.store(out, i * 16, function(k, x.load(i * 16, 16)))
    return k


@pytest.fixture(scope="module")
def kernels(build: Any, level: Level) -> dict[str, Callable[..., None]]:
    """Every kernel of this file, built once per level."""
    all_forms = (F32_FORM, I8, I8_SUMS_OF_16)
    specs: dict[str, KernelSpec] = {
        "rms_norm": RmsNormKernel((F32_FORM,)),
        "rms_norm_all": RmsNormKernel((I8, F32_FORM, I8_SUMS_OF_16, WIDE)),
        "rms_norm_wide": RmsNormKernel((WIDE,)),
        "rms_norm_residual": RmsNormKernel((F32_FORM,), residual=True),
        "layer_norm": LayerNormKernel((F32_FORM,), bias=False),
        "layer_norm_bias": LayerNormKernel((F32_FORM,)),
        "layer_norm_all": LayerNormKernel((I8, F32_FORM, I8_SUMS_OF_16, WIDE)),
        "softcap": ElementwiseKernel("softcap", (F32_FORM,), numbers=("cap",)),
        **{name: ElementwiseKernel(name, (F32_FORM,)) for name in ACTIVATIONS if name != "silu"},
        "gated_gelu": ElementwiseKernel("gated_gelu", (F32_FORM,)),
        **{op: ElementwiseKernel(op, (F32_FORM,)) for op in ("add", "mul", "silu", "gated_silu")},
        "quantize": ElementwiseKernel("copy", (I8,)),
        "quantize_16": ElementwiseKernel("copy", (I8_SUMS_OF_16,)),
        "gated_silu_quantize": ElementwiseKernel("gated_silu", (F32_FORM, I8)),
        "chained_silu": ElementwiseKernel("silu", all_forms, chained=True),
        "chained_gated_silu": ElementwiseKernel("gated_silu", all_forms, chained=True),
        "chained_floats": ElementwiseKernel("gated_silu", (F32_FORM,), chained=True),
        "chained_wide": ElementwiseKernel("gated_silu", (WIDE, F32_FORM, Form("i8", 64, 16)), chained=True),
        "silu_all": ElementwiseKernel("silu", all_forms),
        "gated_silu_all": ElementwiseKernel("gated_silu", all_forms),
        "quantize_token": QuantizeTokensKernel(TOKEN),
        "quantize_token_16": QuantizeTokensKernel(Form("i8", "token", 16)),
        "quantize_64": QuantizeTokensKernel(Form("i8", 64)),
        "quantize_96_16": QuantizeTokensKernel(Form("i8", 96, 16)),
        "quantize_turned": ElementwiseKernel("copy", (F32_FORM, TURNED)),
        "quantize_64_turned": QuantizeTokensKernel(Form("i8", 64, rotation=32)),
    }
    functions = [function_kernel(function) for function in (exp, exp2, tanh)]
    return build(level, *functions, *(build_kernel(spec, name, level) for name, spec in specs.items()))


@pytest.fixture
def rows() -> Rows:
    """Activations as kernels get them: columns padded with zeros to a multiple of 32."""

    def pad(values: np.ndarray) -> np.ndarray:
        full = np.zeros((len(values), padded(values.shape[1], 32)), np.float32)
        full[:, : values.shape[1]] = values
        return guarded(full)

    return pad


def new(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Where a kernel writes: full of what it must overwrite."""
    return guarded(np.full(shape, 99, dtype))


def outputs(x: np.ndarray, form: Form) -> list[np.ndarray]:
    """Arrays for the results of a kernel in a form."""
    tokens, stride = x.shape
    if form.kind == "f32":
        return [new(x.shape, np.float32)]
    groups = 1 if form.group == "token" else stride // 32
    return [
        new(x.shape, np.int8),
        new((tokens, groups), np.float32),
        new((tokens, stride // form.sum_group), np.int32),
    ]


def rounded(x: np.ndarray, form: Form) -> list[np.ndarray]:
    """Codes, scales and sums by docs/numerics.md, every step in float32."""
    tokens, stride = x.shape
    size = stride if form.group == "token" else form.group
    groups = np.pad(x, ((0, 0), (0, -stride % size))).reshape(tokens, -1, size)
    amax = np.abs(groups).max(-1)
    inverse = np.zeros_like(amax)
    np.divide(np.float32(127), amax, out=inverse, where=amax > 1e-30)
    codes = np.rint(groups * inverse[..., None]).astype(np.int8).reshape(tokens, -1)[:, :stride]
    sums = codes.reshape(tokens, -1, form.sum_group).sum(-1, dtype=np.int32)
    scales = amax / np.float32(127)
    if form.group != "token":  # every tile has its scale, where several share one, too
        scales = np.repeat(scales, size // 32, axis=1)[:, : stride // 32]
    return [codes, scales, sums]


def assert_rounded(results: list[np.ndarray], x: np.ndarray, form: Form, level: Level) -> None:
    for result, expected, kind in zip(results, rounded(x, form), ("codes", "scales", "sums"), strict=True):
        whole = kind == "scales" and form.group == "token"
        np.testing.assert_array_equal(result, expected if whole else interleaved(expected, level, kind))


WIDTHS = [8, 32, 80, 341, 576, 577]


# ---- rms_norm


@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(kernels: Any, rows: Rows, width: int) -> None:
    rng, eps = np.random.default_rng(width), 1e-5
    sizes = [[1], [1e-4], [300], [1], [0], [1e-20], [1e15]]
    values = (rng.standard_normal((7, width)) * sizes).astype(np.float32)
    weight = rng.standard_normal((1, width)).astype(np.float32)
    x, w = rows(values), rows(weight)
    [out] = outputs(x, F32_FORM)
    for begin, end in ((0, 1), (1, 7)):
        kernels["rms_norm"](x, w, out, 7, width, x.shape[1], eps, begin, end)
    exact = values.astype(np.float64)
    exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + np.float32(eps)) * weight
    np.testing.assert_allclose(out[:, :width], exact, rtol=1e-6, atol=0)
    assert not out[:, width:].any()
    stored = EncodedTensor(F32, (width,), values=torch.tensor(weight[0]))
    expected = compute_exactly("rms_norm", [torch.tensor(values), stored], {"eps": eps})
    np.testing.assert_array_equal(out[:, :width], expected.numpy())
    norm = LlamaRMSNorm(width, eps)
    norm.weight.data = torch.tensor(weight[0])
    with torch.no_grad():
        np.testing.assert_allclose(out[:, :width], norm(torch.tensor(values)).numpy(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("width", [80, 128, 160, 576])
def test_rms_norm_gives_several_forms_at_once(kernels: Any, level: Level, rows: Rows, width: int) -> None:
    rng = np.random.default_rng(1)
    x, weight = rows(rng.standard_normal((19, width))), rows(rng.standard_normal((1, width)))
    first, [floats], second, wide = (outputs(x, form) for form in (I8, F32_FORM, I8_SUMS_OF_16, WIDE))
    numbers = len(x), width, x.shape[1], 1e-6, 0, len(x)
    kernels["rms_norm_all"](x, weight, *first, floats, *second, *wide, *numbers)
    [plain] = outputs(x, F32_FORM)
    kernels["rms_norm"](x, weight, plain, *numbers)
    np.testing.assert_array_equal(floats, plain)
    for results, form in ((first, I8), (second, I8_SUMS_OF_16), (wide, WIDE)):
        assert_rounded(results, floats, form, level)
    alone = outputs(x, WIDE)
    kernels["rms_norm_wide"](x, weight, *alone, *numbers)
    assert_rounded(alone, floats, WIDE, level)


def vector(values: np.ndarray) -> EncodedTensor:
    return EncodedTensor(F32, values.shape, values=torch.tensor(values))


@pytest.mark.parametrize("width", [8, 80, 577])
def test_rms_norm_with_a_residual(kernels: Any, rows: Rows, width: int) -> None:
    rng = np.random.default_rng(width)
    values, residual = (rng.standard_normal((7, width)).astype(np.float32) for _ in range(2))
    weight = rng.standard_normal((1, width)).astype(np.float32)
    x, r, w = rows(values), rows(residual), rows(weight)
    [out] = outputs(x, F32_FORM)
    for begin, end in ((0, 1), (1, 7)):
        kernels["rms_norm_residual"](x, w, r, out, 7, width, x.shape[1], 1e-5, begin, end)
    inputs = [torch.tensor(values), vector(weight[0]), torch.tensor(residual)]
    expected = compute_exactly("rms_norm", inputs, {"eps": 1e-5, "residual": True})
    np.testing.assert_array_equal(out[:, :width], expected.numpy())
    assert not out[:, width:].any()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(kernels: Any, rows: Rows, width: int, has_bias: bool) -> None:
    rng, eps = np.random.default_rng(width), 1e-5
    values = (rng.standard_normal((7, width)) * [[1], [1e-4], [300], [1], [0], [1e-20], [1e15]]).astype(np.float32)
    values[3] += 100
    weight, bias = (rng.standard_normal((1, width)).astype(np.float32) for _ in range(2))
    x, vectors = rows(values), [rows(weight), *([rows(bias)] if has_bias else [])]
    [out] = outputs(x, F32_FORM)
    for begin, end in ((0, 1), (1, 7)):
        kernel = kernels["layer_norm_bias" if has_bias else "layer_norm"]
        kernel(x, *vectors, out, 7, width, x.shape[1], eps, begin, end)
    assert not out[:, width:].any()
    inputs = [torch.tensor(values), vector(weight[0]), *([vector(bias[0])] if has_bias else [])]
    expected = compute_exactly("layer_norm", inputs, {"bias": has_bias, "eps": eps})
    np.testing.assert_array_equal(out[:, :width], expected.numpy())


@pytest.mark.parametrize("width", [80, 128])
def test_layer_norm_gives_several_forms_at_once(kernels: Any, level: Level, rows: Rows, width: int) -> None:
    rng = np.random.default_rng(1)
    x, weight, bias = (rows(rng.standard_normal((count, width))) for count in (19, 1, 1))
    first, [floats], second, wide = (outputs(x, form) for form in (I8, F32_FORM, I8_SUMS_OF_16, WIDE))
    numbers = len(x), width, x.shape[1], 1e-6, 0, len(x)
    kernels["layer_norm_all"](x, weight, bias, *first, floats, *second, *wide, *numbers)
    [plain] = outputs(x, F32_FORM)
    kernels["layer_norm_bias"](x, weight, bias, plain, *numbers)
    np.testing.assert_array_equal(floats, plain)
    for results, form in ((first, I8), (second, I8_SUMS_OF_16), (wide, WIDE)):
        assert_rounded(results, floats, form, level)


# ---- rounding to int8


def quantize(kernels: Any, x: np.ndarray, form: Form) -> list[np.ndarray]:
    results = outputs(x, form)
    tokens, stride = x.shape
    name = "quantize" + ("" if form.group == 32 else f"_{form.group}") + ("_16" if form.sum_group == 16 else "")
    blocks = tokens * stride // 32 if form.group == 32 else tokens
    for begin, end in ((0, 1), (1, blocks)):
        kernels[name](x, *results, tokens, stride, begin, end)
    return results


FORMS = [I8, I8_SUMS_OF_16, TOKEN, Form("i8", "token", 16), Form("i8", 64), Form("i8", 96, 16)]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_rounding(kernels: Any, level: Level, rows: Rows, form: Form, width: int) -> None:
    rng = np.random.default_rng(width)
    x = rows(rng.standard_normal((19, width)) * 10.0 ** rng.integers(-6, 6, (19, 1)))
    assert_rounded(quantize(kernels, x, form), x, form, level)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_halves_round_to_even(kernels: Any, rows: Rows, form: Form) -> None:
    values = np.full((2, 32), 127.0)  # scale exactly 1, so the codes are the values
    values[0, :31] = np.arange(-7.5, 8.0, 0.5)
    values[1, 1:] = np.arange(-126.5, -95.5)
    x = rows(values)
    codes, scales, sums = quantize(kernels, x, form)
    np.testing.assert_array_equal(codes, np.round(values))
    assert codes[0, 0] == -8 and codes[0, 2] == -6 and codes[0, 14] == 0 and codes[0, 16] == 0 and codes[1, 1] == -126
    assert (scales == 1).all()
    np.testing.assert_array_equal(sums.sum(1), np.round(values).sum(1))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rounding_of_extreme_values(kernels: Any, level: Level, rows: Rows, form: Form) -> None:
    values = np.zeros((7, 64))
    values[1] = -1e38
    values[2, ::2], values[2, 1::2] = 3e38, -3e38
    values[3] = 1e-29
    values[4, 3] = -1e-20
    values[5] = 1e-39  # its inverse overflows
    values[6] = np.linspace(-1e-31, 1e-31, 64)
    x = rows(values)
    codes, scales, sums = results = quantize(kernels, x, form)
    assert_rounded(results, x, form, level)
    assert not codes[0].any() and not scales[0].any() and not sums[0].any()
    assert (codes[1] == -127).all() and (codes[3] == 127).all() and codes[4, 3] == -127
    assert not codes[5:].any()


def test_tiles_are_turned_where_they_are_rounded(kernels: Any, level: Level, rows: Rows) -> None:
    """The bits of turning first, by the reference, and then rounding; floats leave as they are."""
    x = rows(np.random.default_rng(3).standard_normal((11, 192)) ** 3)
    turned = rotate(torch.from_numpy(x.copy()), 32).numpy()
    [floats], results = outputs(x, F32_FORM), outputs(x, TURNED)
    kernels["quantize_turned"](x, floats, *results, 11, 192, 0, 66)
    np.testing.assert_array_equal(floats, x)
    assert_rounded(results, turned, I8, level)
    wide = outputs(x, Form("i8", 64))
    kernels["quantize_64_turned"](x, *wide, 11, 192, 0, 11)
    assert_rounded(wide, turned, Form("i8", 64), level)


# ---- element-wise ops


@pytest.mark.parametrize("width", [32, 341, 576])
def test_add_and_mul(kernels: Any, rows: Rows, width: int) -> None:
    rng = np.random.default_rng(width)
    a, b = rows(rng.standard_normal((3, width))), rows(rng.standard_normal((3, width)))
    blocks = 3 * a.shape[1] // 32
    for name, expected in (("add", a + b), ("mul", a * b)):
        [out] = outputs(a, F32_FORM)
        kernels[name](a, b, out, 3, a.shape[1], 1, blocks)
        kernels[name](a, b, out, 3, a.shape[1], 0, 1)
        np.testing.assert_array_equal(out, expected)


def test_silu(kernels: Any, level: Level, rows: Rows) -> None:
    values = np.concatenate([np.linspace(-80, 80, 15993), [-1e30, -1e4, -100, 0, 100, 1e4, 1e30]])
    a, b = rows(values.reshape(16, 1000)), rows(np.random.default_rng(0).standard_normal((16, 1000)))
    exact = a.astype(np.float64)
    with np.errstate(over="ignore"):
        exact = exact / (1 + np.exp(-exact))
    blocks = 16 * a.shape[1] // 32
    [out] = outputs(a, F32_FORM)
    kernels["silu"](a, out, 16, a.shape[1], 0, blocks)
    # Where exp is clamped, sigmoid is 1e-38 instead of less.
    assert (np.abs(out - exact) <= (2.2e-7 + 1.4e-8 * np.abs(a)) * np.abs(exact) + 1e-38 * np.abs(a)).all()
    np.testing.assert_array_equal(out, compute_exactly("silu", [torch.from_numpy(a)], {}).numpy())
    [gated] = outputs(a, F32_FORM)
    kernels["gated_silu"](a, b, gated, 16, a.shape[1], 0, blocks)
    np.testing.assert_array_equal(gated, out * b)
    both = [outputs(a, form) for form in (F32_FORM, I8)]
    kernels["gated_silu_quantize"](a, b, *both[0], *both[1], 16, a.shape[1], 0, blocks)
    np.testing.assert_array_equal(both[0][0], gated)
    assert_rounded(both[1], gated, I8, level)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(kernels: Any, rows: Rows, name: str) -> None:
    """The bits of the exact reference, which tests/reference compares with torch."""
    values = np.concatenate([np.linspace(-12, 12, 15993), [-1e30, -1e4, -100, 0, 100, 1e4, 1e18]])
    x = rows(values.reshape(16, 1000))
    [out] = outputs(x, F32_FORM)
    kernels[name](x, out, 16, x.shape[1], 0, 16 * x.shape[1] // 32)
    np.testing.assert_array_equal(out, compute_exactly(name, [torch.from_numpy(x)], {}).numpy())
    if name == "gelu":
        b, [gated] = rows(np.random.default_rng(0).standard_normal((16, 1000))), outputs(x, F32_FORM)
        kernels["gated_gelu"](x, b, gated, 16, x.shape[1], 0, 16 * x.shape[1] // 32)
        np.testing.assert_array_equal(gated, out * b)


def test_softcap(kernels: Any, rows: Rows) -> None:
    x = rows(np.random.default_rng(0).standard_normal((7, 341)) * 40)
    [out] = outputs(x, F32_FORM)
    kernels["softcap"](x, out, 7, x.shape[1], 30.0, 0, 7 * x.shape[1] // 32)
    np.testing.assert_array_equal(out, compute_exactly("softcap", [torch.from_numpy(x)], {"cap": 30.0}).numpy())


@pytest.mark.parametrize("op", ["silu", "gated_silu"])
@pytest.mark.parametrize("tokens", [1, 7, 19])
def test_chained_ops_are_those_of_whole_rows(kernels: Any, level: Level, rows: Rows, op: str, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    x = [rows(rng.standard_normal((tokens, 160)) * 10.0 ** rng.integers(-20, 3, (tokens, 1))) for _ in op.split("_")]
    expected, results = ([a for form in (F32_FORM, I8, I8_SUMS_OF_16) for a in outputs(x[0], form)] for _ in range(2))
    kernels[f"{op}_all"](*x, *expected, tokens, 160, 0, tokens * 5)
    for first, count in ((0, min(tokens, 8)), (8, tokens - 8)):
        for begin, end in ((0, 1), (1, 4), (4, 5)):
            if count > 0:
                parts = [guarded(a[first : first + count, 32 * begin : 32 * end]) for a in x]
                kernels[f"chained_{op}"](*parts, *results, tokens, 160, first, count, begin, end)
    for result, whole in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, whole)


@pytest.mark.parametrize("tokens", [1, 7, 19])
def test_chained_ops_round_groups_of_several_tiles(kernels: Any, level: Level, rows: Rows, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    x = [rows(rng.standard_normal((tokens, 576)) * 10.0 ** rng.integers(-20, 3, (tokens, 1))) for _ in range(2)]
    [expected] = outputs(x[0], F32_FORM)
    kernels["gated_silu"](*x, expected, tokens, 576, 0, tokens * 18)
    forms = [WIDE, F32_FORM, Form("i8", 64, 16)]
    results, [floats] = [outputs(x[0], form) for form in forms], outputs(x[0], F32_FORM)
    for first, count in ((0, min(tokens, 8)), (8, tokens - 8)):
        for begin, end in ((0, 4), (4, 12), (12, 18)):
            if count > 0:
                parts = [guarded(a[first : first + count, 32 * begin : 32 * end]) for a in x]
                kernels["chained_floats"](*parts, floats, tokens, 576, first, count, begin, end)
                arguments = [*parts, *(a for result in results for a in result), tokens, 576, first, count, begin, end]
                kernels["chained_wide"](*arguments)
    for result in (floats, results[1][0]):
        np.testing.assert_array_equal(result, expected)
    for form, result in zip(forms, results, strict=True):
        if form.kind == "i8":
            assert_rounded(result, expected, form, level)


def test_exp(kernels: Any) -> None:
    x = guarded(np.concatenate([np.linspace(-87, 88, 1 << 19), np.linspace(-2, 2, 1 << 18)]).astype(np.float32))
    out = new(x.shape, np.float32)
    kernels["exp"](x, out, x.size)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(out / exact - 1) <= 1.6e-7 + 1.4e-8 * np.abs(x)).all()
    np.testing.assert_array_equal(out, float32.exp(torch.from_numpy(x)).numpy())


def test_tanh(kernels: Any) -> None:
    values = [*np.linspace(-12, 12, 1 << 16), *np.logspace(-12, 0, 1 << 10), -1e30, 1e30, *[0] * 14]
    x = guarded(np.array(values, np.float32))
    out = new(x.shape, np.float32)
    kernels["tanh"](x, out, x.size)
    np.testing.assert_allclose(out, np.tanh(x.astype(np.float64)), rtol=1e-6, atol=0)
    np.testing.assert_array_equal(out, float32.tanh(torch.from_numpy(x)).numpy())


def test_exp2(kernels: Any) -> None:
    x = guarded(np.concatenate([np.linspace(-126, 127, 1 << 19), np.linspace(-2, 2, 1 << 18)]).astype(np.float32))
    out = new(x.shape, np.float32)
    kernels["exp2"](x, out, x.size)
    assert (np.abs(out / np.exp2(x.astype(np.float64)) - 1) <= 1.6e-7).all()
    np.testing.assert_array_equal(out, float32.exp2(torch.from_numpy(x)).numpy())


def test_exp2_at_its_lower_end(kernels: Any) -> None:
    x = guarded(np.array([0, -0.0, -126, -127, -128, -1e30, -3e38, *np.linspace(-127, -126, 9)], np.float32))
    out = new(x.shape, np.float32)
    kernels["exp2"](x, out, x.size)
    assert out[:7].tolist() == [1, 1, 2.0**-126, 0, 0, 0, 0]
    assert (np.abs(out[7:] - np.exp2(x[7:].astype(np.float64))) <= 2.0**-127).all()
    np.testing.assert_array_equal(out, float32.exp2(torch.from_numpy(x)).numpy())


def test_exp_at_and_beyond_its_limits(kernels: Any) -> None:
    x = guarded(np.array([0, -0.0, -87, 88, -1e30, -3e38, 1e30, -100, 100, *[1] * 7], np.float32))
    out = new(x.shape, np.float32)
    kernels["exp"](x, out, x.size)
    assert out[0] == out[1] == 1
    assert (out[[4, 5, 7]] == out[2]).all() and 0 < out[2] < 2e-38
    assert (out[[6, 8]] == out[3]).all() and np.isfinite(out[3])
