"""Round to nearest against plain numpy, for every width, odd sizes and extreme values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.ir import print_module
from smc.passes import QuantizeRTN, apply
from smc.reference import Reference

f32 = np.float32


def plain_rtn(row, bits, group, symmetric):
    """Min-max round to nearest of one row, group by group, written out: codes, scales, zeros."""
    top, codes, scales, zeros = 2**bits - 1, [], [], []
    for start in range(0, len(row), group):
        part = row[start : start + group].astype(f32)
        if symmetric:
            zero, largest = 2 ** (bits - 1), part[np.abs(part).argmax()]
            scale = f32(1) / (f32(-zero) / largest)
        else:
            low, high = min(part.min(), f32(0)), max(part.max(), f32(0))
            inverse = f32(top) / (high - low)
            zero, scale = int(np.clip(np.rint(-low * inverse), 0, top)), f32(1) / inverse
        scale = f32(np.float16(scale))
        codes.append(np.clip(np.rint(part * (f32(1) / scale)) + zero, 0, top))
        scales.append(scale)
        zeros.append(zero)
    return codes, np.array(scales), np.array(zeros)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("columns", "group"), [(1, 32), (31, 16), (80, 32), (341, 128), (96, "row"), (33, 64)])
def test_min_max_equals_plain_numpy(bits, symmetric, columns, group):
    weights = np.random.default_rng(bits).normal(0, 0.1, (5, columns)).astype(f32)
    tensor = QuantizeRTN(bits=bits, group=group, symmetric=symmetric, search=0).encode(torch.from_numpy(weights))
    for row in range(5):
        codes, scales, zeros = plain_rtn(weights[row], bits, columns if group == "row" else group, symmetric)
        np.testing.assert_array_equal(tensor.scales[row].numpy(), scales)
        for number, part in enumerate(codes):
            np.testing.assert_array_equal(tensor.codes[row, number, : len(part)].numpy(), part)
        if not symmetric:
            np.testing.assert_array_equal(tensor.zeros[row].numpy(), zeros)
    assert str(tensor.encoding) == f"int{bits}.{'row' if group == 'row' else f'g{group}'}" + (
        "" if symmetric else ".asymmetric"
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_search_finds_what_trying_every_scale_finds(bits, symmetric):
    """Brute force over a fine grid of scales and zeros is little better in squared error."""
    weights = np.random.default_rng(0).standard_t(4, (40, 32)).astype(f32)
    top = 2**bits - 1
    decoded = QuantizeRTN(bits=bits, symmetric=symmetric).encode(torch.from_numpy(weights)).decode().numpy()
    plain = QuantizeRTN(bits=bits, symmetric=symmetric, search=0).encode(torch.from_numpy(weights)).decode().numpy()
    searched, best = ((decoded - weights) ** 2).sum(), 0.0
    for part in weights:
        zeros = [top // 2 + 1] if symmetric else range(top + 1) if bits < 5 else range(int(top * 0.2), int(top * 0.8))
        extent = np.abs(part).max() if symmetric else part.max() - part.min()
        scales = extent * np.linspace(0.5, 1.2, 60) / (top / 2 if symmetric else top)
        scales = np.concatenate([scales, -scales]) if symmetric else scales
        least = np.inf
        for zero in zeros:
            codes = np.clip(np.rint(part / scales[:, None]), -zero, top - zero)
            least = min(least, ((scales[:, None] * codes - part) ** 2).sum(-1).min())
        best += least
    assert searched < ((plain - weights) ** 2).sum()
    assert searched < best * (1.05 if bits < 8 else 1.15)  # 8 bits: few of the many zeros are tried


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group=st.sampled_from([16, 32, 64, "row"]),
    columns=st.integers(1, 100),
    magnitude=st.floats(0.1, 1e3),
    seed=st.integers(0, 1000),
)
def test_error_is_at_most_half_a_step(bits, symmetric, group, columns, magnitude, seed):
    weights = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed)) * magnitude
    weights[0, ::3] = 0
    tensor = QuantizeRTN(bits=bits, group=group, symmetric=symmetric, search=0).encode(weights)
    size = tensor.codes.shape[-1]
    padded = torch.nn.functional.pad(tensor.decode() - weights, (0, tensor.codes.shape[1] * size - columns))
    error = padded.view(tensor.codes.shape).abs().amax(-1)
    step = tensor.scales.abs()
    # Symmetric codes lack the place opposite the largest weight: another one as large loses a whole step there.
    # And f16 rounds the scale, relative 2^-11, which the largest code multiplies.
    assert (error <= step * ((1.0 if symmetric else 0.5) + 2**bits * 2**-11)).all()
    inner = (tensor.codes > 0) & (tensor.codes < 2**bits - 1)
    inner_error = padded.view(tensor.codes.shape).abs().masked_fill(~inner, 0).amax(-1)
    assert (inner_error <= step * 0.5001).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("search", [0, 6])
def test_extreme_weights(symmetric, search):
    weights = torch.zeros(6, 32)
    weights[1, 3] = 5.0  # alone in its group
    weights[2] = -0.25  # all equal
    weights[3] = 1e-9  # below every f16 scale
    weights[4, 0] = 1e-42  # subnormal: its inverse overflows
    weights[5] = torch.linspace(100, 131, 32)  # far from 0, which stays in the range
    decoded = QuantizeRTN(bits=4, symmetric=symmetric, search=search).encode(weights).decode()
    assert (decoded[0] == 0).all()
    torch.testing.assert_close(decoded[1], weights[1], rtol=1e-3, atol=0)
    torch.testing.assert_close(decoded[2], weights[2], rtol=1e-3, atol=0)
    assert (decoded[3:5] == 0).all()
    torch.testing.assert_close(decoded[5], weights[5], rtol=0.1, atol=0)


def test_scales_beyond_f16_are_refused_and_fit_bf16():
    weights = torch.full((1, 32), 1e7)
    with pytest.raises(InputError, match="use scale_dtype f32 or bf16"):
        QuantizeRTN(bits=4).encode(weights)
    decoded = QuantizeRTN(bits=4, scale_dtype="bf16").encode(weights).decode()
    torch.testing.assert_close(decoded, weights, rtol=0.01, atol=0)


@pytest.mark.parametrize(("bits", "worst"), [(8, 0.05), (6, 0.12), (4, 0.5)])
def test_a_whole_model(make_checkpoint, bits, worst):
    module = load_checkpoint(make_checkpoint(tie_word_embeddings=True)[0])
    result = apply(module, [QuantizeRTN(bits=bits, symmetric=False)])
    text = print_module(result)
    assert f"parameter model.embed_tokens.weight: [96, 48] int{bits}.g32.asymmetric\n" in text
    assert "parameter model.norm.weight: [48] f32\n" in text
    # 48 columns are two groups of 32, one half empty; 80 are three.
    matrices = [p for p in result.parameters.values() if len(p.shape) == 2]
    groups = sum(p.shape[0] * -(-p.shape[1] // 32) for p in matrices)
    vectors = sum(p.shape[0] for p in result.parameters.values() if len(p.shape) == 1)
    assert result.stored_bits() == groups * (32 * bits + 16 + (4 if bits <= 4 else 8)) + 32 * vectors
    tokens = torch.arange(40)
    expected, logits = Reference(module).logits(tokens), Reference(result).logits(tokens)
    assert 0 < ((logits - expected).norm() / expected.norm()).item() < worst


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_dtype", ["f16", "bf16", "f32"])
def test_two_level_scales(symmetric, scale_dtype):
    """Every scale is a multiple, 0 to 255, of its super-group's, and little is lost by it; empty groups decode to 0."""
    torch.manual_seed(0)
    weights = torch.randn(5, 341) * 10.0 ** torch.arange(-2, 3)[:, None]
    weights[1, 32:64] = 0
    weights[2] = 0
    method = QuantizeRTN(bits=4, symmetric=symmetric, super_group=4, scale_dtype=scale_dtype)
    tensor = method.encode(weights)
    assert tensor.scales.shape == (5, 3) and tensor.scale_codes.shape == (5, 11)
    assert tensor.scale_codes.dtype == torch.uint8 and (tensor.scales >= 0).all()
    inner, outer = tensor.scale_codes, tensor.scales.repeat_interleave(4, dim=1)[:, :11]
    torch.testing.assert_close(tensor.group_scales(), outer * inner, rtol=0, atol=0)
    # The largest scale of a super-group has the largest code; bf16 rounds by more than half of one.
    full = torch.nn.functional.pad(inner, (0, 1)).view(5, 3, 4).amax(-1)
    assert (full[[0, 1, 3, 4]] >= (254 if scale_dtype == "bf16" else 255)).all()
    assert inner[1, 1] == 0 and not tensor.scales[2].any()
    decoded = tensor.decode()
    assert not decoded[1, 32:64].any() and not decoded[2].any()
    plain = QuantizeRTN(bits=4, symmetric=symmetric).encode(weights).decode()
    loss, plain_loss = ((t - weights).norm(dim=1)[[0, 1, 3, 4]] for t in (decoded, plain))
    assert (loss < plain_loss * 1.15).all()


def test_wrong_super_groups_are_refused():
    for options in ({"super_group": 1}, {"super_group": 8, "group": "row"}):
        with pytest.raises(InputError, match="super_group"):
            QuantizeRTN(**options)
