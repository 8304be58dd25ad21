"""The exact reference against exact rationals and against docs/numerics.md written out number by number.

That kernels and artifacts have the same bits is tested where they are built: tests/codegen, tests/test_end_to_end.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kernel_inputs import random_tensor
from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.ir import F32, EncodedTensor, Encoding, Parameter, RopeTable, ops
from smc.ir.activations import ACTIVATIONS
from smc.ir.encoding import Transform
from smc.passes import FUSIONS, QuantizeRTN, apply
from smc.reference import ExactReference, Reference, kl_divergence
from smc.reference.exact import compute_exactly
from smc.reference.exact.linear import multiply
from smc.reference.float32 import exp, exp2, fma, sum_products, tanh, tree_sum
from tests.codegen.encodings import ENCODINGS


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """The exact reference's operations are small: threads that wait for each other take far longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


FLOATS = st.floats(-(2.0**40), 2.0**40, width=32, allow_subnormal=False)


def rounded(value: Fraction) -> np.float32:
    """The nearest float32, of two that are equally near the even one."""
    guess = np.float32(float(value))
    around = (np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf)))
    return min(around, key=lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.uint32)) & 1))


def scalar_fma(a: float, b: float, c: float) -> np.float32:
    return rounded(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def float32(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float32) for value in values]


# ---- arithmetic


@given(FLOATS, FLOATS, FLOATS)
def test_fma_rounds_once(a: float, b: float, c: float):
    expected = scalar_fma(a, b, c)
    if abs(expected) >= 2.0**-126 or expected == 0:
        assert fma(*float32(a, b, c)).numpy()[0] == expected


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_fma_beside_the_middle_of_two_numbers(sign: float):
    """Sums whose float64 is the middle between two float32 numbers though they are not: rounding twice goes wrong."""
    # 2**30 + 1 and 2**30 - 1 have factors of at most 24 bits: products just above and just below half of 1's last bit.
    more, less = (812825.0, 1321 * 2.0**-54), (32767.0, 32769 * 2.0**-54)
    one, next_to_one = 1.0, 1 + 2.0**-23
    for (a, b), c, expected in ((more, one, next_to_one), (less, next_to_one, next_to_one), (less, one, one)):
        assert fma(*float32(sign * a, b, sign * c)).item() == sign * expected == scalar_fma(sign * a, b, sign * c)
    twice = [np.float32(a * b + c) for (a, b), c in ((more, one), (less, next_to_one))]
    assert twice != [np.float32(next_to_one)] * 2


def test_sums_of_products_go_column_by_column():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, 37)).astype(np.float32) for n in (3, 5))
    a[0], b[0] = np.round(a[0] * 8), np.round(b[0] * 8)
    expected = np.zeros((3, 5), np.float32)
    for token, row, column in itertools.product(range(3), range(5), range(37)):
        expected[token, row] = scalar_fma(a[token, column], b[row, column], expected[token, row])
    np.testing.assert_array_equal(sum_products(torch.tensor(a), torch.tensor(b)).numpy(), expected)


def test_exp():
    x = torch.linspace(-87, 88, 20001)
    exact = np.exp(x.double().numpy())
    np.testing.assert_array_less(np.abs(exp(x).numpy() / exact - 1), 1.6e-7 + 1.4e-8 * np.abs(x.numpy()))
    assert exp(torch.zeros(1)).item() == 1
    assert exp(torch.tensor([-3e38, 1e30])).tolist() == exp(torch.tensor([-87.0, 88.0])).tolist()


def test_exp2():
    x = torch.linspace(-126, 127, 20001)
    exact = np.exp2(x.double().numpy())
    np.testing.assert_array_less(np.abs(exp2(x).numpy() / exact - 1), 1.6e-7)
    whole = torch.arange(-126.0, 128)
    assert exp2(whole).tolist() == [2.0**n for n in range(-126, 128)]
    assert not exp2(torch.tensor([-127.0, -3e38])).any()
    assert (torch.diff(exp2(torch.linspace(-127.5, -125.5, 20001))) >= 0).all()


def test_tanh():
    x = torch.cat([torch.linspace(-12, 12, 20001), torch.logspace(-12, 0, 2001), -torch.logspace(-12, 0, 2001)])
    np.testing.assert_allclose(tanh(x).numpy(), np.tanh(x.double().numpy()), rtol=1e-6)
    assert tanh(torch.tensor([0.0, 1e30, -1e30])).tolist() == [0, 1, -1]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str):
    """Within 1e-5 of float64, and of torch's own, down to where results are too small for float32."""
    x = torch.cat([torch.linspace(-9, 9, 20001), torch.logspace(-10, 1, 1001), -torch.logspace(-10, 0.9, 1001)])
    exact = ACTIVATIONS[name].torch(x.double())
    result = compute_exactly(name, [x], {})
    # torch adds 1 to an erf or a tanh near -1, even in float64.
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-14 if "gelu" in name else 1e-30)
    torch.testing.assert_close(result, ACTIVATIONS[name].torch(x), rtol=1e-5, atol=1e-6)
    far = torch.tensor([0.0, 1e4, -1e4])
    torch.testing.assert_close(compute_exactly(name, [far], {}), ACTIVATIONS[name].torch(far), rtol=1e-6, atol=1e-30)


def test_softcap():
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 40
    result = compute_exactly("softcap", [x], {"cap": 30.0})
    torch.testing.assert_close(result.double(), 30 * (x.double() / 30).tanh(), rtol=1e-6, atol=0)


def test_trees_add_halves():
    x = torch.tensor([1e8, 1.0, -1e8, 1.0])
    assert tree_sum(x).item() == 2  # (1e8 - 1e8) + (1 + 1); from the left it would be 1


# ---- ops


def linear_by_the_book(x: np.ndarray, tensor: EncodedTensor) -> np.ndarray:
    """docs/numerics.md, "Activations" and "Matrix products", one number after the other."""
    encoding, (rows, columns) = tensor.encoding, tensor.shape
    whole = 1 << 20
    group = encoding.scales.group if isinstance(encoding.scales.group, int) else whole
    per_row = group == whole and not encoding.stores_minima
    activation_group = {"token": whole}.get(encoding.input_group, encoding.input_group)
    integers, scales, offsets = stored_numbers(tensor)
    result = np.zeros((len(x), rows), np.float32)
    for token, row in np.ndindex(*result.shape):
        total = np.float32(0)
        if not encoding.rounds_inputs:
            for start in range(0, columns, group):
                part, amount = np.float32(0), np.float32(0)
                for column in range(start, min(start + group, columns)):
                    part = scalar_fma(integers[row, column], x[token, column], part)
                    amount = np.float32(amount + x[token, column])
                whole_row = encoding.is_float or per_row
                total = part if whole_row else scalar_fma(part, scales[row, start // group], total)
                if encoding.stores_minima:
                    total = scalar_fma(offsets[row, start // group], amount, total)
        else:
            codes, x_scales = rounded_inputs(x[token], activation_group)
            step = min(group, activation_group)
            shared = activation_group > group and activation_group != whole
            part = np.float32(0)
            for start in range(0, columns, step):
                piece, place = slice(start, min(start + step, columns)), start // group
                own_scale = np.float32(1) if activation_group == whole else x_scales[start // activation_group]
                x_scale = np.float32(1) if shared else own_scale
                factor = x_scale if per_row else np.float32(scales[row, place] * x_scale)
                part = scalar_fma(np.float32(int(codes[piece] @ integers[row, piece].astype(int))), factor, part)
                if encoding.stores_minima:
                    amount = np.float32(np.float32(codes[piece].sum()) * x_scale)
                    part = scalar_fma(offsets[row, place], amount, part)
                if shared and (piece.stop % activation_group == 0 or piece.stop == columns):
                    total, part = scalar_fma(part, own_scale, total), np.float32(0)
            total = total if shared else part
        if per_row and not encoding.is_float:
            total = np.float32(total * scales[row, 0])
        if encoding.rounds_inputs and activation_group == whole:
            total = np.float32(total * x_scales[0])
        result[token, row] = total
    return result


def stored_numbers(tensor: EncodedTensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes less their zeros (or levels, or floats) [rows, columns], scales and offsets [rows, groups]."""
    encoding, (rows, columns) = tensor.encoding, tensor.shape
    if encoding.is_float:
        return tensor.decode().numpy(), np.ones((rows, 1), np.float32), np.zeros((rows, 1))
    scales = tensor.group_scales().numpy()
    codes = tensor.codes.numpy().astype(np.int64)
    if encoding.has_codebook:
        integers = np.array(encoding.entries, np.float32)[codes]
    elif encoding.stores_zeros:
        integers = codes - tensor.zeros.numpy().astype(np.int64)[..., None]
    else:
        integers = codes - (encoding.constant_zero or 0)
    offsets = np.zeros_like(scales) if tensor.offsets is None else tensor.group_offsets().numpy()
    return integers.reshape(rows, -1)[:, :columns], scales, offsets


def rounded_inputs(x: np.ndarray, group: int) -> tuple[np.ndarray, list[np.float32]]:
    codes, scales = [], []
    for start in range(0, len(x), group):
        part = x[start : start + group]
        amax = np.abs(part).max()
        scales.append(np.float32(amax / np.float32(127)))
        codes.append(np.rint(part * (np.float32(127) / amax if amax > 1e-30 else np.float32(0))))
    return np.concatenate(codes).astype(int), scales


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(ENCODINGS), st.sampled_from([1, 31, 33, 70, 130]), st.integers(0, 99), st.booleans())
def test_linear_goes_by_the_book(encoding: Encoding, columns: int, seed: int, extreme: bool):
    tensor = random_tensor(encoding, 3, columns, seed, extreme)
    x = np.random.default_rng(seed).standard_normal((2, columns)).astype(np.float32)
    x[1, : columns // 2] = 0
    np.testing.assert_array_equal(multiply(torch.tensor(x), tensor).numpy(), linear_by_the_book(x, tensor))


def test_linear_in_blocks_of_rows_is_the_same(monkeypatch: pytest.MonkeyPatch):
    tensor, x = random_tensor(ENCODINGS[5], 50, 70, 1), torch.randn(4, 70, generator=torch.Generator().manual_seed(1))
    whole = multiply(x, tensor)
    monkeypatch.setattr("smc.reference.exact.linear.BLOCK", 7 * len(x))
    assert torch.equal(multiply(x, tensor), whole)


def test_rms_norm_sums_in_32_lanes():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 77, generator=generator), torch.randn(77, generator=generator)
    lanes = np.zeros((2, 32), np.float32)
    for token, column in np.ndindex(2, 77):
        value = x[token, column].item()
        lanes[token, column % 32] = scalar_fma(value, value, lanes[token, column % 32])
    sums = lanes[:, :16] + lanes[:, 16:]
    while sums.shape[1] > 1:
        sums = sums[:, : sums.shape[1] // 2] + sums[:, sums.shape[1] // 2 :]
    factor = np.float32(1) / np.sqrt(sums / np.float32(77) + np.float32(1e-5))
    stored = EncodedTensor(F32, (77,), values=weight)
    result = compute_exactly("rms_norm", [x, stored], {"eps": 1e-5})
    np.testing.assert_array_equal(result.numpy(), x.numpy() * factor * weight.numpy())


def f32(*shape: int, seed: int = 0) -> tuple[torch.Tensor, EncodedTensor]:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values, EncodedTensor(F32, shape, values=values)


@pytest.mark.parametrize("width", [7, 32, 77])
@pytest.mark.parametrize("has_bias", [False, True])
def test_layer_norm(width: int, has_bias: bool):
    x = f32(3, width)[0] * 3 + 5
    (weight, stored_weight), (bias, stored_bias) = f32(width, seed=1), f32(width, seed=2)
    inputs = [x, stored_weight, *([stored_bias] if has_bias else [])]
    result = compute_exactly("layer_norm", inputs, {"bias": has_bias, "eps": 1e-5})
    expected = torch.nn.functional.layer_norm(
        x.double(), (width,), weight.double(), bias.double() if has_bias else None, 1e-5
    )
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    # The sums themselves go as those of the RMS norm: of what is centered already, both are alike.
    centered = torch.tensor([[1.0, -1.0, 2.0, -2.0]])
    one = EncodedTensor(F32, (4,), values=torch.ones(4))
    both = [compute_exactly(op, [centered, one], {"eps": 1e-5}) for op in ("layer_norm", "rms_norm")]
    assert torch.equal(*both)


def test_heads_are_normed_like_rows_and_the_residual_is_added_last():
    x, residual = f32(2, 3 * 10)[0], f32(2, 3 * 10, seed=3)[0]
    weight = f32(10, seed=1)[1]
    rows = compute_exactly("rms_norm", [x.view(6, 10), weight], {"eps": 1e-5}).view(2, 30)
    assert torch.equal(compute_exactly("rms_norm", [x, weight], {"eps": 1e-5}), rows)
    with_residual = compute_exactly("rms_norm", [x, weight, residual], {"eps": 1e-5, "residual": True})
    assert torch.equal(with_residual, rows + residual)


def test_rope_of_a_part_of_each_head():
    x, positions = f32(4, 2 * 10)[0], torch.tensor([0, 1, 5, 300])
    frequencies = torch.tensor([1.0, 0.25, 0.0625])
    table = RopeTable(tuple(frequencies.tolist()), 1.5)
    result = compute_exactly("rope", [x, positions], {"head_dim": 10, "table": table}).view(4, 2, 10)
    angles = (positions[:, None] * frequencies).double()[:, None]
    turn = torch.polar(torch.full_like(angles, 1.5), angles)
    pairs = torch.complex(x.view(4, 2, 10)[..., :3], x.view(4, 2, 10)[..., 3:6]) * turn
    torch.testing.assert_close(result[..., :6], torch.cat((pairs.real, pairs.imag), -1).float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(result[..., 6:], x.view(4, 2, 10)[..., 6:])


def test_scores_are_capped():
    q, k, v = f32(70, 4 * 8)[0] * 3, f32(70, 2 * 8, seed=1)[0] * 3, f32(70, 2 * 8, seed=2)[0]
    attributes = {"heads": 4, "kv_heads": 2, "head_dim": 8, "scale": 0.4, "window": 50, "softcap": 2.5}
    result = compute_exactly("attention", [q, k, v], attributes)
    op = ops.find("attention")
    expected = op.call(op.compute, [q.double(), k.double(), v.double()], attributes)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


def test_embedding_decodes_rows():
    for encoding in ENCODINGS:
        table = random_tensor(encoding, 9, 45, 2)
        result = compute_exactly("embedding", [torch.tensor([8, 0, 8]), table], {})
        torch.testing.assert_close(result, table.decode()[[8, 0, 8]], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("window", [None, 5, 70])
def test_attention_over_several_pages(window: int | None):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(150, 4 * 12, generator=generator)
    k, v = (torch.randn(150, 2 * 12, generator=generator) for _ in range(2))
    attributes = {"heads": 4, "kv_heads": 2, "head_dim": 12, "scale": 0.3, "window": window}
    result = compute_exactly("attention", [q, k, v], attributes)
    distance = torch.arange(150)[:, None] - torch.arange(150)
    visible = (distance >= 0) & (distance < (window or math.inf))
    heads = [t.double().view(150, -1, 12).transpose(0, 1) for t in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=visible, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(result.double(), expected.transpose(0, 1).reshape(150, -1), rtol=1e-5, atol=1e-6)


# ---- models


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_bias": True, "mlp_bias": True}, {"hidden_size": 36, "num_key_value_heads": 4, "head_dim": 10}],
    ids=str,
)
@pytest.mark.parametrize("quantizer", [None, QuantizeRTN(bits=8)], ids=str)
def test_agrees_with_the_reference(make_checkpoint, changes, quantizer):
    module = load_checkpoint(make_checkpoint(**changes)[0])
    module = apply(module, [quantizer] if quantizer else [])
    tokens = torch.randint(0, 96, (40,), generator=torch.Generator().manual_seed(1))
    expected, result = Reference(module, "f16").logits(tokens), ExactReference(module, "f16").logits(tokens)
    if quantizer is None:
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)
    assert kl_divergence(expected, result).mean() <= 1e-4
    assert torch.equal(ExactReference(apply(module, FUSIONS), "f16").logits(tokens), result)


def test_threads_are_left_as_they_were(make_checkpoint):
    before = torch.get_num_threads()
    ExactReference(load_checkpoint(make_checkpoint()[0])).logits(torch.tensor([1, 2]))
    assert torch.get_num_threads() == before


def test_what_has_no_kernel_is_refused(make_checkpoint):
    module = load_checkpoint(make_checkpoint()[0]).copy()
    name = "model.embed_tokens.weight"
    shape = module.parameters[name].shape
    tensor = random_tensor(Encoding.of(bits=8), *shape, 0)
    encoding = replace(tensor.encoding, transform=Transform(rotation=16))
    module.parameters[name] = Parameter(name, shape, encoding, lambda: replace(tensor, encoding=encoding))
    with pytest.raises(InputError, match=r"no kernel.* an embedding in encoding int8.*rotated"):
        ExactReference(module).logits(torch.tensor([1]))
