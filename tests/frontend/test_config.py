"""Configs: rotary embeddings against transformers, and values of the wrong type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from smc.errors import InputError
from smc.frontend.config import Config
from smc.frontend.rope import rope_table

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


YARN = {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.5, "truncate": False}


@pytest.mark.parametrize("head_dim", [6, 64, 80, 128])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "default", "rope_theta": 100000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        {**LLAMA3, "rope_theta": 500000.0},
        {**LLAMA3, "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 1000},
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 32.0, "original_max_position_embeddings": 4096},
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512, **YARN},
        {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096},
    ],
)
def test_frequencies_equal_those_of_transformers(head_dim: int, rope: dict[str, Any]) -> None:
    kind = rope["rope_type"]
    if kind == "longrope":
        factors = {name: [first + i for i in range(head_dim // 2)] for name, first in (("short", 1.0), ("long", 1.5))}
        rope = {**rope, **{f"{name}_factor": values for name, values in factors.items()}}
    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=131072, rope_parameters=dict(rope))
    if kind == "default":
        expected, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=131072)
    ours = rope_table(Config(config.to_dict(), "config.json"), head_dim)
    assert ours.magnitude == pytest.approx(factor, rel=1e-12)
    np.testing.assert_allclose(ours.frequencies, expected.numpy(), rtol=5e-7)
    assert all(np.float32(value) == value for value in ours.frequencies)


def test_longrope_has_the_short_factors_where_the_context_is_not_stretched() -> None:
    factors = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096, **factors}
    config = LlamaConfig(head_dim=4, max_position_embeddings=4096, rope_parameters=rope)
    expected, factor = ROPE_INIT_FUNCTIONS["longrope"](config)
    ours = rope_table(Config(config.to_dict(), "config.json"), 4)
    assert (ours.magnitude, factor) == (1.0, 1.0)
    np.testing.assert_allclose(ours.frequencies, expected.numpy(), rtol=3e-7)


def test_a_part_of_each_head() -> None:
    table = rope_table(Config({"partial_rotary_factor": 0.25}, "config.json"), 64, partial=0.5)
    assert (table.pairs, str(table)) == (8, "theta 10000, 16 of 64 channels")
    assert table.frequencies == rope_table(Config({}, "config.json"), 16).frequencies
    with pytest.raises(InputError, match="a rotary embedding of 15 of the 60 channels"):
        rope_table(Config({"partial_rotary_factor": 0.25}, "config.json"), 60, partial=0.5)


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
    assert str(rope_table(Config(spelling, "config.json"), 64)) == "theta 500000, llama3(32, 1..4, 8192)"


def test_null_scaling_is_none() -> None:
    assert str(rope_table(Config({"rope_scaling": None}, "config.json"), 64)) == "theta 10000"
    assert str(rope_table(Config({"rope_theta": 1000000}, "config.json"), 64)) == "theta 1e+06"


def test_unsupported_scalings_are_named() -> None:
    with pytest.raises(InputError, match=r"rope type spiral is not supported \(default, linear, dynamic, llama3,"):
        rope_table(Config({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "config.json"), 64)


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
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "short_factor must be a list of 32 positive"),
    ],
)
def test_bad_scalings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rope_table(Config(values, "config.json"), 64)


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
