"""Ternary weights against BitNet b1.58's formula in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.ir import parse_encoding
from smc.passes import QuantizeTernary, apply, load_recipe

f32 = np.float32


def absmean(weights: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """RoundClip(W / γ, -1, 1) with γ = mean |W| (arXiv 2402.17764, section 2), γ stored as f16."""
    gamma = f32(np.float16(np.abs(weights.astype(np.float64)).mean()))
    return np.clip(np.rint(weights * (f32(1) / gamma)), -1, 1), gamma


@pytest.mark.parametrize("storage", ["packed", "base3"])
@pytest.mark.parametrize("group", ["tensor", "row", 32, 128])
def test_values_are_the_papers(storage: Any, group: Any) -> None:
    weights = np.random.default_rng(0).normal(0, 0.1, (5, 341)).astype(f32)
    weights[3] = 0
    tensor = QuantizeTernary(storage=storage, group=group).encode(torch.from_numpy(weights))
    decoded = tensor.decode().numpy()
    size = group if isinstance(group, int) else 341
    parts: list[Any] = [np.s_[r, c : c + size] for r in range(5) for c in range(0, 341, size)]
    for part in [np.s_[:]] if group == "tensor" else parts:
        if weights[part].any():
            values, gamma = absmean(weights[part])
            np.testing.assert_allclose(decoded[part], values * gamma, rtol=1e-3)  # γ's last bit depends on the order
        else:
            assert not decoded[part].any()
    assert tensor.encoding.input_group == "token"
    assert parse_encoding(str(tensor.encoding)) == tensor.encoding


def test_a_ternary_model_is_kept() -> None:
    values = np.random.default_rng(1).integers(-1, 2, (64, 96)).astype(f32)
    values *= f32(0.0625) / np.abs(values).mean()  # trained models scale by the mean magnitude
    weights = torch.from_numpy(values)
    decoded = QuantizeTernary(scale_dtype="f32").encode(weights).decode().numpy()
    np.testing.assert_array_equal(np.sign(decoded), np.sign(values))


@pytest.mark.parametrize("tied", [True, False])
def test_the_recipe_keeps_head_and_embedding(make_checkpoint: Any, tied: bool) -> None:
    module = load_checkpoint(make_checkpoint(tie_word_embeddings=tied)[0])
    result = apply(module, load_recipe("ternary").passes)
    encodings = {name: str(p.encoding) for name, p in result.parameters.items() if len(p.shape) == 2}
    kept = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert {name for name, encoding in encodings.items() if encoding == "int6.g32.asymmetric"} == kept
    assert {encoding for name, encoding in encodings.items() if name not in kept} == {"int2.tensor.zero1.a8-token"}


def test_groups_without_a_kernel_are_refused() -> None:
    with pytest.raises(InputError, match="quantize-ternary takes groups of 16"):
        QuantizeTernary(group=48)
