"""Mixtures of experts compiled: every encoding that matrices have, and what a step reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import smc
from benchmarks.kernel_inputs import random_tensor
from smc.cli.passes import usual_encodings
from smc.codegen.plan.planner import make_plan
from smc.codegen.weights import place_weights
from smc.frontend.fresh import new_model
from smc.ir import F16, EncodedTensor, Encoding, Module, Parameter, integer
from smc.reference import ExactReference
from tests.codegen.encodings import ENCODINGS
from tests.levels import usable_levels

TOKENS = torch.randint(0, 90, (40,), generator=torch.Generator().manual_seed(2)).tolist()
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "head_dim": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 90,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}


def mixture(
    encodings: Sequence[Encoding], family: str = "Olmoe", part: str = "mlp.experts.", **changes: int
) -> Module:
    """A model with a layer of experts for each encoding, their codes random. part: of the names of its matrices.
    changes: to its config."""
    sizes = {**SIZES, **changes, "architectures": [f"{family}ForCausalLM"], "num_hidden_layers": len(encodings)}
    module = new_model(sizes, "mixture")
    for layer, encoding in enumerate(encodings):
        matrices = [n for n in module.parameters if n.startswith(f"model.layers.{layer}.{part}") and "_proj." in n]
        for place, name in enumerate(matrices):
            *count, rows, columns = shape = module.parameters[name].shape
            tensor = random_tensor(encoding, math.prod(count) * rows, columns, 7 * layer + place)
            tensor = stack(tensor, shape) if count else tensor
            module.parameters[name] = Parameter(name, shape, encoding, lambda tensor=tensor: tensor)  # type: ignore[misc]
    return module


def stack(tensor: EncodedTensor, shape: tuple[int, ...]) -> EncodedTensor:
    """Rows as matrices of a stack, each with an order of its columns of its own where columns have one."""
    values = None if tensor.values is None else tensor.values.view(shape)
    order, generator = None, torch.Generator().manual_seed(shape[1])
    if tensor.encoding.transform.permuted:
        order = torch.stack([torch.randperm(shape[2], generator=generator) for _ in range(shape[0])]).int()
    return replace(tensor, shape=shape, values=values, order=order)


SOME = [
    integer(4),
    F16,
    integer(8, group="row", activation_group="token"),
    Encoding.of(bits=4, group=32, super_group=8, minimum="two-level"),
    Encoding.of(bits=4, group=32, permuted=True, zero="stored"),
    Encoding.of("base3", group=64, activation="none"),
]

LISTED = [encoding for encoding, _ in usual_encodings(group=32)]
"""Those of `smc encodings`."""

ALL = [pytest.param(ENCODINGS[first : first + 9], marks=pytest.mark.slow) for first in range(0, len(ENCODINGS), 9)]


@pytest.mark.parametrize("encodings", [SOME, *ALL])
def test_experts_have_the_bits_of_the_exact_reference(tmp_path: Path, encodings: list[Encoding]) -> None:
    check_bits(mixture(encodings), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(LISTED), 5))
def test_every_listed_encoding_in_all_matrices(tmp_path: Path, first: int) -> None:
    check_bits(mixture(LISTED[first : first + 5], "Qwen3Moe", part=""), tmp_path)


def check_bits(module: Module, tmp_path: Path) -> None:
    """A prompt whole and token by token, on every level of this machine."""
    smc.compile(module, out=tmp_path / "mixture.smc")
    expected = ExactReference(module, "f16").logits(torch.tensor(TOKENS)).numpy()
    assert np.isfinite(expected).all()
    for level in usable_levels():
        with smc.load(tmp_path / "mixture.smc", level=level) as compiled:
            np.testing.assert_array_equal(compiled.logits(TOKENS), expected)
            with compiled.new_sequence() as sequence:
                steps = [sequence.extend([token], logits="all").copy() for token in TOKENS[:12]]
            np.testing.assert_array_equal(np.concatenate(steps), expected[:12])


def test_a_token_multiplies_its_experts_alone() -> None:
    module = mixture([integer(4)])
    table = place_weights(make_plan(module))
    stacks = [name for name in module.parameters if ".experts." in name]
    assert module.chosen_by_token() == dict.fromkeys(stacks, Fraction(2, 5))
    sizes = {name: table.matrices[name].each for name in stacks}
    embedding = 32 * 3 * 96 * 4  # looked up, so that a token reads none of the other rows
    assert table.total_bytes - table.token_bytes == 3 * sum(sizes.values()) + embedding
