"""Configs: rotary embeddings against transformers, and values of the wrong type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from smc.errors import InputError
from smc.frontend.config import Config, rope_of
from smc.ir import inverse_frequencies

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("head_dim", [6, 64, 80, 128])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "default", "rope_theta": 100000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        {**LLAMA3, "rope_theta": 500000.0},
        {**LLAMA3, "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 1000},
    ],
)
def test_frequencies_equal_those_of_transformers(head_dim: int, rope: dict[str, Any]) -> None:
    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=131072, rope_parameters=dict(rope))
    kind = rope["rope_type"]
    if kind == "default":
        expected, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[kind](config)
    assert factor == 1
    ours = inverse_frequencies(head_dim, *rope_of(Config(config.to_dict(), "config.json")))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected.numpy(), rtol=3e-7)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_theta": 500000.0, "rope_scaling": {**LLAMA3, "rope_type": None, "type": "llama3"}},
        {
            "rope_theta": 500000.0,
            "rope_scaling": {**LLAMA3, "original_max_position_embeddings": None},
            "max_position_embeddings": 8192,
        },
    ],
)
def test_every_spelling_of_a_scaling(spelling: dict[str, Any]) -> None:
    theta, scaling = rope_of(Config(spelling, "config.json"))
    assert theta == 500000.0
    assert str(scaling) == "llama3(32, 1..4, 8192)"


def test_null_scaling_is_none() -> None:
    assert rope_of(Config({"rope_scaling": None}, "config.json")) == (10000.0, None)
    assert rope_of(Config({"rope_theta": 1000000}, "config.json")) == (1000000.0, None)


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope", "su"])
def test_unsupported_scalings_are_named(kind: str) -> None:
    with pytest.raises(InputError, match=rf"rope type {kind} is not supported \(default, linear and llama3 are\)"):
        rope_of(Config({"rope_scaling": {"rope_type": kind, "factor": 2.0}}, "config.json"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": "linear"}, "rope_scaling must be an object, not 'linear'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling has no factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a positive number from 1e-6 to 1e6, not 0"),
        ({"rope_theta": "10000"}, "rope_theta must be a number from 1 to 1e30, not '10000'"),
        ({"rope_theta": float("inf")}, "rope_theta must be a number from 1 to 1e30, not inf"),
        ({"partial_rotary_factor": 0.5}, r"a part of each head \(0.5\) is not supported"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "low_freq_factor must be smaller"),
    ],
)
def test_bad_scalings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rope_of(Config(values, "config.json"))


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, [8], {}])
def test_integers_are_positive_integers(value: object) -> None:
    with pytest.raises(InputError, match=r"config\.json: heads must be a positive integer, at most 1,073,741,824, not"):
        Config({"heads": value}, "config.json").integer("heads")


@pytest.mark.parametrize("value", [[1, 2], [1, 2, 0], [1, 2, True], ["1", 2, 3]])
def test_lists_have_one_integer_a_layer(value: object) -> None:
    with pytest.raises(InputError, match="a positive integer or a list of 3 of them"):
        Config({"widths": value}, "config.json").integers("widths", 3)


def test_null_counts_as_missing() -> None:
    config = Config({"a": None}, "config.json")
    assert config.integer("a", 7) == 7
    with pytest.raises(InputError, match=r"config.json has no a$"):
        config.integer("a")
