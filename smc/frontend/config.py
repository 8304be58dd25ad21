"""What several architectures read of a model's config.json alike."""

from __future__ import annotations

from smc.errors import InputError
from smc.fields import MOST_CONTEXT, Fields, Range
from smc.ir import RopeScaling

Config = Fields
"""A config.json, or a GGUF's metadata spelled like one."""

CONTEXT = Range(1, MOST_CONTEXT, f"a positive integer, at most {MOST_CONTEXT:,}")
THETA = Range(1, 1e30, "a number from 1 to 1e30")
FACTOR = Range(1e-6, 1e6, "a positive number from 1e-6 to 1e6")
"""With these, frequencies times positions stay finite in float32."""


def rope_of(config: Config, default_theta: float = 10000.0) -> tuple[float, RopeScaling | None]:
    """Base frequency and scaling of the rotary embedding.

    Reads both spellings: `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (transformers 4, where
    the oldest files call `rope_type` just `type`). InputError names a scaling that is not supported.
    """
    rope = config.section("rope_parameters")
    if not rope.values:
        rope = config.section("rope_scaling")
    theta = rope.number("rope_theta", config.number("rope_theta", default_theta, THETA), THETA)
    kind = rope.text("rope_type", rope.text("type", "default"))
    partial = rope.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    if partial != 1:
        raise InputError(f"{config.origin}: rotary embedding of a part of each head ({partial:g}) is not supported")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", rope.number("factor", within=FACTOR))
    if kind == "llama3":
        fallback = config.integer("original_max_position_embeddings", config.integer("max_position_embeddings", 8192))
        scaling = RopeScaling(
            "llama3",
            rope.number("factor", within=FACTOR),
            rope.number("low_freq_factor", within=FACTOR),
            rope.number("high_freq_factor", within=FACTOR),
            rope.integer("original_max_position_embeddings", fallback),
        )
        if scaling.low_freq_factor >= scaling.high_freq_factor:
            raise InputError(f"{rope.origin}: low_freq_factor must be smaller than high_freq_factor")
        return theta, scaling
    raise InputError(f"{config.origin}: rope type {kind} is not supported (default, linear and llama3 are)")
