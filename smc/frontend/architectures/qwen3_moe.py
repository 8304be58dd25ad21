"""Qwen 3's mixtures of experts (Yang et al., "Qwen3 Technical Report", 2025): Qwen 3 with experts in most layers."""

from __future__ import annotations

from smc.frontend.architectures import experts, parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.qwen3 import HEAD_NORMS
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import Config
from smc.frontend.rope import rope_table


@architecture(
    "Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    gguf=GGUF(
        "qwen3moe",
        {**HEAD_NORMS, **experts.gguf_tensors()},
        {
            **experts.GGUF_METADATA,
            "expert_count": "num_experts",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        {"norm_topk_prob": True},
    ),
)
def qwen3_moe(checkpoint: Checkpoint) -> Decoder:
    """Layers that the config leaves out have one feed-forward, of `intermediate_size`."""
    config = checkpoint.config
    heads = parts.Heads.of(config, default_kv_heads=4)
    hidden_size, eps = heads.hidden_size, config.number("rms_norm_eps", 1e-6)
    bias = config.flag("attention_bias", False)
    norm, head_norm = parts.rms_norm(hidden_size, eps), parts.rms_norm(heads.head_dim, eps)
    activation, rope = parts.activation_of(config), rope_table(config, heads.head_dim)
    window = config.integer("sliding_window", 4096) if config.flag("use_sliding_window", False) else None
    mixture = experts.Experts.of(
        config,
        count=experts.count_of(config, 128),
        chosen=config.integer("num_experts_per_tok", 8),
        width=config.integer("moe_intermediate_size", 768),
        normalized=config.flag("norm_topk_prob", False),
    )
    sparse = _sparse_layers(config)
    checkpoint = experts.stacked(checkpoint, mixture, sparse)

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=bias)
            q = head_norm(b, q, "self_attn.q_norm", "q_normed")
            k = head_norm(b, k, "self_attn.k_norm", "k_normed")
            return parts.output(b, parts.attend(b, q, k, v, heads, rope, window=window), heads, bias=bias)

        def feed_forward(x: str) -> str:
            if index in sparse:
                return experts.mixture(b, x, hidden_size, mixture, activation)
            return parts.gated_ffn(b, x, hidden_size, width, activation)

        return parts.pre_norm_layer(b, norm, attention, feed_forward)

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    decoder = parts.decoder(checkpoint, layers, hidden_size, norm, default_context=32768)
    return experts.finished(decoder, checkpoint, mixture, sparse)


def _sparse_layers(config: Config) -> range | list[int]:
    """The layers that have experts: every `decoder_sparse_step`th, but those of `mlp_only_layers`."""
    count, step = config.integer("num_hidden_layers"), config.integer("decoder_sparse_step", 1)
    layers, dense = range(step - 1, count, step), config.items("mlp_only_layers")
    return [layer for layer in layers if layer not in dense] if dense else layers
