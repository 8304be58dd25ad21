"""Small random models of every family: class in transformers → changes to the tiny config, for each kind of shape.

The first of each have the heads of other tests' models, so that few kernels of attention are built for them.
"""

from __future__ import annotations

from typing import Any

HEADS = {"hidden_size": 45, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 10, "intermediate_size": 77}
ONE_KV = {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 12, "hidden_size": 60}
MANY = {"num_key_value_heads": 4}  # as many as query heads
LONG = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0]
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 6, "long_factor": LONG}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

FAMILIES: dict[str, list[dict[str, Any]]] = {
    "Qwen2": [
        {},
        {"tie_word_embeddings": True, **MANY},
        {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1, "rope_parameters": YARN},
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ],
    "Qwen3": [
        {"head_dim": 12},
        {**HEADS, "tie_word_embeddings": True},
        ONE_KV,
        {"head_dim": 32, "attention_bias": True, "rope_parameters": YARN},
    ],
    "Gemma": [{"head_dim": 12, "tie_word_embeddings": True}, HEADS, ONE_KV, {"head_dim": 32, "attention_bias": True}],
    "Gemma2": [
        {"head_dim": 12, "tie_word_embeddings": True, "sliding_window": 7, "query_pre_attn_scalar": 24},
        {**HEADS, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        {**ONE_KV, "attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 70},
        {"head_dim": 32, "attention_bias": True, "layer_types": ["full_attention", "sliding_attention"]},
    ],
    "Gemma3": [
        {"head_dim": 12, "tie_word_embeddings": True, "sliding_window": 7, "num_hidden_layers": 6},
        {**HEADS, "query_pre_attn_scalar": 24, "layer_types": ["sliding_attention", "full_attention"]},
        {
            **ONE_KV,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 70,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {"head_dim": 32, "attention_bias": True, "layer_types": ["full_attention", "full_attention"]},
    ],
    "StableLm": [
        {"partial_rotary_factor": 0.5},
        {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3, "use_qkv_bias": True},
        {"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 1},
        {"hidden_size": 64, "use_parallel_residual": True, "tie_word_embeddings": True, **MANY},
        {"partial_rotary_factor": 0.5, "use_parallel_residual": True, "qk_layernorm": True},
    ],
    "Phi3": [
        {"pad_token_id": 0},
        {"pad_token_id": 0, "hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1},
        {"pad_token_id": 0, "sliding_window": 7, "tie_word_embeddings": True, **MANY},
        {
            "pad_token_id": 0,
            "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 128},
            "original_max_position_embeddings": 128,
            "max_position_embeddings": 512,
        },
        {"pad_token_id": 0, "hidden_size": 64, "partial_rotary_factor": 0.75, "intermediate_size": 33},
    ],
    "BitNet": [
        {},
        {"attention_bias": True, "tie_word_embeddings": True},
        {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1, "intermediate_size": 77},
        MANY,
    ],
    "SmolLM3": [
        {"num_hidden_layers": 4, "pad_token_id": 0},
        {"no_rope_layers": [0, 1], "tie_word_embeddings": True, "pad_token_id": 0},
        {"attention_bias": True, "mlp_bias": True, "pad_token_id": 0, "no_rope_layer_interval": 2},
        {
            "pad_token_id": 0,
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention"],
            **MANY,
        },
    ],
    "Granite": [
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.3, "logits_scaling": 4.0},
        {"attention_bias": True, "mlp_bias": True, "residual_multiplier": 0.5, "attention_multiplier": 0.25},
        {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1, "tie_word_embeddings": True},
        {"rope_parameters": LLAMA3, "attention_multiplier": 0.25, **MANY},
    ],
    "Olmo2": [
        {"pad_token_id": 0},
        {"pad_token_id": 0, "attention_bias": True, "tie_word_embeddings": True},
        {"pad_token_id": 0, "hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1},
        {"pad_token_id": 0, "rope_parameters": LLAMA3, **MANY},
    ],
    "Qwen3Moe": [
        {"head_dim": 12, "moe_intermediate_size": 33, "num_experts": 6, "num_experts_per_tok": 2},
        {
            **HEADS,
            "moe_intermediate_size": 64,
            "num_experts": 33,
            "num_experts_per_tok": 5,
            "norm_topk_prob": True,
            "tie_word_embeddings": True,
        },
        {
            **ONE_KV,
            "moe_intermediate_size": 40,
            "num_experts": 4,
            "num_experts_per_tok": 4,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 7,
            "num_hidden_layers": 3,
        },
        {
            "head_dim": 12,
            "attention_bias": True,
            "moe_intermediate_size": 32,
            "num_experts": 20,
            "num_experts_per_tok": 18,
            "mlp_only_layers": [1],
            "rope_parameters": YARN,
            "norm_topk_prob": True,
        },
    ],
    "Olmoe": [
        {"pad_token_id": 0, "num_experts": 8, "num_experts_per_tok": 3},
        {
            "pad_token_id": 0,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "num_experts": 5,
            "norm_topk_prob": True,
            "num_experts_per_tok": 1,
        },
        {
            "pad_token_id": 0,
            "hidden_size": 60,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "num_experts": 3,
            "num_experts_per_tok": 2,
        },
        {"pad_token_id": 0, "rope_parameters": LLAMA3, **MANY, "num_experts": 64, "intermediate_size": 31},
    ],
    "Mixtral": [
        {"num_local_experts": 4},
        {**HEADS, "tie_word_embeddings": True, "num_local_experts": 7, "num_experts_per_tok": 3},
        {**ONE_KV, "sliding_window": 7, "num_local_experts": 3},
        {"head_dim": 32, "num_local_experts": 2, "num_experts_per_tok": 1, "hidden_act": "gelu"},
    ],
    "GPT2": [
        {"pad_token_id": 0},
        {"pad_token_id": 0, "n_embd": 60, "n_head": 5, "n_inner": 77, "scale_attn_by_inverse_layer_idx": True},
        {"pad_token_id": 0, "tie_word_embeddings": False, "activation_function": "gelu"},
        {"pad_token_id": 0, "n_embd": 64, "scale_attn_weights": False},
    ],
    "GPTNeoX": [
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"hidden_size": 64, "use_parallel_residual": False, "tie_word_embeddings": True},
        {"hidden_size": 96, "num_attention_heads": 3, "attention_bias": False},
        {"hidden_size": 64, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.0}},
    ],
}

CASES = [(kind, place) for kind, variants in FAMILIES.items() for place in range(len(variants))]
