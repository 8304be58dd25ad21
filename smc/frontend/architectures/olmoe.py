"""OLMoE (Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models", 2024): norms of whole q and k."""

from __future__ import annotations

from smc.errors import InputError
from smc.frontend.architectures import experts, parts
from smc.frontend.architectures.block import Block
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.qwen3 import HEAD_NORMS
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table


@architecture(
    "OlmoeForCausalLM",
    model_type="olmoe",
    gguf=GGUF(
        "olmoe",
        {**HEAD_NORMS, **experts.gguf_tensors()},
        {**experts.GGUF_METADATA, "expert_count": "num_experts"},
    ),
)
def olmoe(checkpoint: Checkpoint) -> Decoder:
    """All layers are alike; `intermediate_size` is the width of an expert."""
    config = checkpoint.config
    if config.values.get("clip_qkv") is not None:
        raise InputError(f"{config.origin}: clip_qkv {config.values['clip_qkv']} is not supported (null is)")
    heads = parts.Heads.of(config)
    hidden_size, eps = heads.hidden_size, config.number("rms_norm_eps", 1e-5)
    bias = config.flag("attention_bias", False)
    norm = parts.rms_norm(hidden_size, eps)
    q_norm, k_norm = parts.rms_norm(heads.width, eps), parts.rms_norm(heads.kv_width, eps)
    activation, rope = parts.activation_of(config), rope_table(config, heads.head_dim)
    mixture = experts.Experts.of(
        config,
        count=experts.count_of(config, 64),
        chosen=config.integer("num_experts_per_tok", 8),
        width=config.integer("intermediate_size", 2048),
        normalized=config.flag("norm_topk_prob", False),
    )
    numbers = range(config.integer("num_hidden_layers"))
    checkpoint = experts.stacked(checkpoint, mixture, numbers)

    def layer(index: int) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=bias)
            q = q_norm(b, q, "self_attn.q_norm", "q_normed")
            k = k_norm(b, k, "self_attn.k_norm", "k_normed")
            return parts.output(b, parts.attend(b, q, k, v, heads, rope), heads, bias=bias)

        def feed_forward(x: str) -> str:
            return experts.mixture(b, x, hidden_size, mixture, activation)

        return parts.pre_norm_layer(b, norm, attention, feed_forward)

    decoder = parts.decoder(checkpoint, map(layer, numbers), hidden_size, norm, default_context=4096)
    return experts.finished(decoder, checkpoint, mixture, numbers)
