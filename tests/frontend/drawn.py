"""Random configs of every family: what a family's config may say, each value drawn by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.frontend.families import LLAMA3, YARN

Draw = Callable[["Rng"], dict[str, Any]]

HEADS = ((4, 2, 12), (3, 3, 10), (5, 1, 12), (4, 4, 12))
"""Heads, key-value heads and head_dim: few, for each takes kernels of its own. The first have those of other tests."""

FAST = 10
"""So many draws have the first heads only, whose kernels are there."""


class Rng(random.Random):
    """heads: what attention's sizes are drawn from."""

    heads = HEADS

LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def _flag(rng: Rng) -> bool:
    return rng.random() < 0.5


def _rope(rng: Rng, **more: Any) -> dict[str, Any]:
    plain = {"rope_type": "default", "rope_theta": rng.choice([1e3, 1e4, 5e5])}
    return {"rope_parameters": {**rng.choice([plain, plain, LINEAR, DYNAMIC, YARN, LLAMA3]), **more}}


def _plain_rope(rng: Rng, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": rng.choice([1e3, 1e4, 1e6]), **more}}


def _free_heads(rng: Rng) -> dict[str, Any]:
    """Sizes of attention where head_dim is a key of its own."""
    heads, kv_heads, head_dim = rng.choice(rng.heads)
    hidden = heads * rng.choice([head_dim, 9, 15, 16])  # transformers wants a multiple
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "hidden_size": hidden}


def _tied_heads(rng: Rng) -> dict[str, Any]:
    """Sizes of attention where heads share the hidden size."""
    heads, kv_heads, head_dim = rng.choice(rng.heads)
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": heads * head_dim}


def _activation(rng: Rng) -> str:
    return rng.choice(["silu", "silu", "gelu", "gelu_pytorch_tanh", "relu2"])


def _kinds(rng: Rng, layers: int) -> list[str]:
    return [rng.choice(["sliding_attention", "full_attention"]) for _ in range(layers)]


def _llama(rng: Rng) -> dict[str, Any]:
    biases = {"attention_bias": _flag(rng), "mlp_bias": _flag(rng), "hidden_act": _activation(rng)}
    return {**_free_heads(rng), **_rope(rng), **biases}


def _mistral(rng: Rng) -> dict[str, Any]:
    return {**_free_heads(rng), **_rope(rng), "sliding_window": rng.choice([None, 7, 70, 500])}


def _qwen2(rng: Rng) -> dict[str, Any]:
    window = {"use_sliding_window": _flag(rng), "sliding_window": rng.choice([7, 70]), "max_window_layers": 1}
    return {**_tied_heads(rng), **_rope(rng), **window, "hidden_act": _activation(rng)}


def _qwen3(rng: Rng) -> dict[str, Any]:
    return {**_free_heads(rng), **_rope(rng), "attention_bias": _flag(rng)}


def _gemma(rng: Rng) -> dict[str, Any]:
    return {**_free_heads(rng), **_plain_rope(rng), "attention_bias": _flag(rng)}


def _gemma2(rng: Rng) -> dict[str, Any]:
    caps = {"attn_logit_softcapping": rng.choice([None, 2.0, 50.0])}
    caps["final_logit_softcapping"] = rng.choice([None, 3.0, 30.0])
    sizes = {"query_pre_attn_scalar": rng.choice([12, 24, 256]), "sliding_window": rng.choice([7, 70])}
    return {**_gemma(rng), **caps, **sizes}


def _gemma3(rng: Rng) -> dict[str, Any]:
    full = rng.choice([{"rope_type": "default"}, {"rope_type": "linear", "factor": 8.0}])
    ropes = {
        "full_attention": {**full, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    sizes = {"query_pre_attn_scalar": rng.choice([12, 24]), "sliding_window": rng.choice([7, 70])}
    kinds = {"layer_types": _kinds(rng, 2), "num_hidden_layers": 2, "rope_parameters": ropes}
    return {**_free_heads(rng), **sizes, **kinds, "attention_bias": _flag(rng)}


def _stablelm(rng: Rng) -> dict[str, Any]:
    rope = _plain_rope(rng, partial_rotary_factor=rng.choice([0.5, 1.0]))
    flags = {"use_qkv_bias": _flag(rng), "use_parallel_residual": _flag(rng), "qk_layernorm": _flag(rng)}
    heads = rng.choice([h for h in rng.heads if h[2] % 4 == 0])
    sizes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "hidden_size": heads[0] * heads[2]}
    return {**sizes, **rope, **flags}


def _phi3(rng: Rng) -> dict[str, Any]:
    heads = _tied_heads(rng)
    half = heads["hidden_size"] // heads["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [1.0 + i / 2 for i in range(half)]}
    long = {"rope_type": "longrope", "rope_theta": 1e4, **factors, "original_max_position_embeddings": 128}
    rope = rng.choice([_plain_rope(rng), {"rope_parameters": long, "original_max_position_embeddings": 128}])
    return {**heads, **rope, "pad_token_id": 0, "sliding_window": rng.choice([None, 7, 70])}


def _bitnet(rng: Rng) -> dict[str, Any]:
    return {**_tied_heads(rng), **_plain_rope(rng), "attention_bias": _flag(rng)}


def _smollm3(rng: Rng) -> dict[str, Any]:
    flags = {"attention_bias": _flag(rng), "mlp_bias": _flag(rng), "no_rope_layers": [rng.randint(0, 1), 1]}
    return {**_tied_heads(rng), **_rope(rng), **flags, "num_hidden_layers": 2, "pad_token_id": 0}


def _granite(rng: Rng) -> dict[str, Any]:
    names = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
    numbers = {name: rng.choice([1.0, 0.25, 0.3, 2.0]) for name in names}
    return {**_tied_heads(rng), **_rope(rng), **numbers, "attention_bias": _flag(rng), "mlp_bias": _flag(rng)}


def _olmo2(rng: Rng) -> dict[str, Any]:
    return {**_tied_heads(rng), **_rope(rng), "attention_bias": _flag(rng), "pad_token_id": 0}


def _gpt_neox(rng: Rng) -> dict[str, Any]:
    heads, _, head_dim = rng.choice([h for h in rng.heads if h[2] % 4 == 0])
    rope = _plain_rope(rng, partial_rotary_factor=rng.choice([0.5, 1.0]))
    flags = {"use_parallel_residual": _flag(rng), "attention_bias": _flag(rng)}
    return {"num_attention_heads": heads, "hidden_size": heads * head_dim, **rope, **flags}


def _qwen3_moe(rng: Rng) -> dict[str, Any]:
    experts = {**_experts(rng, "num_experts"), "norm_topk_prob": _flag(rng)}
    dense = {"mlp_only_layers": rng.choice([None, [0]]), "moe_intermediate_size": rng.choice([24, 33, 64])}
    window = {"use_sliding_window": _flag(rng), "sliding_window": rng.choice([7, 70])}
    return {**_free_heads(rng), **_rope(rng), **experts, **dense, **window, "attention_bias": _flag(rng)}


def _olmoe(rng: Rng) -> dict[str, Any]:
    experts = {**_experts(rng, "num_experts"), "norm_topk_prob": _flag(rng)}
    return {**_tied_heads(rng), **_rope(rng), **experts, "attention_bias": _flag(rng), "pad_token_id": 0}


def _mixtral(rng: Rng) -> dict[str, Any]:
    window = {"sliding_window": rng.choice([None, 7, 70])}
    return {**_free_heads(rng), **_rope(rng), **_experts(rng, "num_local_experts"), **window}


def _experts(rng: Rng, count: str) -> dict[str, Any]:
    chosen = rng.choice([1, 2, 3])
    return {count: rng.choice([3, 4, 9]), "num_experts_per_tok": chosen}


def _gpt2(rng: Rng) -> dict[str, Any]:
    heads, _, head_dim = rng.choice(rng.heads)
    flags = {"scale_attn_weights": _flag(rng), "scale_attn_by_inverse_layer_idx": _flag(rng)}
    sizes = {"n_embd": heads * head_dim, "n_head": heads, "n_inner": rng.choice([None, 77])}
    return {**sizes, **flags, "activation_function": rng.choice(["gelu_new", "gelu"]), "pad_token_id": 0}


DRAWS: dict[str, Draw] = {
    "Llama": _llama,
    "Mistral": _mistral,
    "Qwen2": _qwen2,
    "Qwen3": _qwen3,
    "Gemma": _gemma,
    "Gemma2": _gemma2,
    "Gemma3": _gemma3,
    "StableLm": _stablelm,
    "Phi3": _phi3,
    "BitNet": _bitnet,
    "SmolLM3": _smollm3,
    "Granite": _granite,
    "Olmo2": _olmo2,
    "GPTNeoX": _gpt_neox,
    "GPT2": _gpt2,
    "Qwen3Moe": _qwen3_moe,
    "Olmoe": _olmoe,
    "Mixtral": _mixtral,
}


def drawn(seed: int) -> tuple[str, dict[str, Any]]:
    """A family and changes to the tiny config, the same for the same seed; families come in turn."""
    rng = Rng(seed)
    rng.heads = HEADS[:1] if seed < FAST else HEADS
    kind = list(DRAWS)[seed % len(DRAWS)]
    common = {
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "intermediate_size": rng.choice([33, 64, 77, 80]),
        "vocab_size": rng.choice([96, 97, 131]),
        "tie_word_embeddings": _flag(rng),
        "max_position_embeddings": 512,
    }
    return kind, {**common, **DRAWS[kind](rng)}
