"""Mixtral (Jiang et al., "Mixtral of Experts", 2024): Llama's block with experts in the place of the feed-forward."""

from __future__ import annotations

from dataclasses import replace

from smc.frontend.architectures import experts, parts
from smc.frontend.architectures.block import Block
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table

PATH, NAMES = "block_sparse_moe", ("w1", "w3", "w2")
"""Where a layer's experts are, and their matrices: gate, up and down."""


@architecture(
    "MixtralForCausalLM",
    model_type="mixtral",
    gguf=GGUF(
        "llama",
        experts.gguf_tensors(PATH, NAMES),
        {**experts.GGUF_METADATA, "expert_count": "num_local_experts"},
        needs="expert_count",
        paired_rows=True,
    ),
)
def mixtral(checkpoint: Checkpoint) -> Decoder:
    """All layers are alike. A missing number of key-value heads is 8, null as many as there are heads."""
    config = checkpoint.config
    kv_heads = None if "num_key_value_heads" in config.values else 8
    heads = parts.Heads.of(config, default_kv_heads=kv_heads)
    hidden_size = heads.hidden_size
    norm = parts.rms_norm(hidden_size, config.number("rms_norm_eps", 1e-5))
    activation, rope = parts.activation_of(config), rope_table(config, heads.head_dim, theta=1e6)
    window = None if config.values.get("sliding_window") is None else config.integer("sliding_window")
    mixture = experts.Experts.of(
        config,
        count=experts.count_of(config, 8),
        chosen=config.integer("num_experts_per_tok", 2),
        width=config.integer("intermediate_size", 14336),
        normalized=True,
    )
    mixture = replace(mixture, path=PATH, names=NAMES)
    numbers = range(config.integer("num_hidden_layers"))
    checkpoint = experts.stacked(checkpoint, mixture, numbers)

    def layer(index: int) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads)
            return parts.output(b, parts.attend(b, q, k, v, heads, rope, window=window), heads)

        def feed_forward(x: str) -> str:
            return experts.mixture(b, x, hidden_size, mixture, activation)

        return parts.pre_norm_layer(b, norm, attention, feed_forward)

    decoder = parts.decoder(checkpoint, map(layer, numbers), hidden_size, norm, default_context=32 * 4096)
    return experts.finished(decoder, checkpoint, mixture, numbers)
