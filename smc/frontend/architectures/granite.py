"""Granite 3 (IBM, 2024): Llama's block with four multipliers, of embeddings, scores, residuals and logits.

Those of residuals are multiplied into the matrices in front of them, that of logits into the last norm: they are free.
"""

from __future__ import annotations

from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.architectures.views import scaled
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table

METADATA = {
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


@architecture("GraniteForCausalLM", model_type="granite", gguf=GGUF("granite", metadata=METADATA, paired_rows=True))
def granite(checkpoint: Checkpoint) -> Decoder:
    """All layers are alike."""
    config = checkpoint.config
    heads = parts.Heads.of(config)
    hidden_size, eps = heads.hidden_size, config.number("rms_norm_eps", 1e-6)
    norm = parts.rms_norm(hidden_size, eps)
    last_norm = parts.rms_norm(hidden_size, eps, scaled(1 / config.number("logits_scaling", 1.0)))
    activation, rope = parts.activation_of(config), rope_table(config, heads.head_dim)
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    scale, residual = config.number("attention_multiplier", 1.0), config.number("residual_multiplier", 1.0)
    transform = scaled(residual) if residual != 1 else None

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=bias)
            attended = parts.attend(b, q, k, v, heads, rope, scale=scale)
            return parts.output(b, attended, heads, bias=bias, transform=transform)

        def feed_forward(x: str) -> str:
            product = parts.gated(b, x, hidden_size, width, activation, bias=mlp_bias)
            return parts.down(b, product, hidden_size, width, bias=mlp_bias, transform=transform)

        return parts.pre_norm_layer(b, norm, attention, feed_forward)

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    multiplier = config.number("embedding_multiplier", 1.0)
    return parts.decoder(checkpoint, layers, hidden_size, last_norm, default_context=2048, scale=multiplier)
