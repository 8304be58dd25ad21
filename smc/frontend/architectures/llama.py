"""Llama 1 to 3 and all that share its shape: TinyLlama, SmolLM, SOLAR, Alpaca.

Touvron et al., "LLaMA" (2023) and "Llama 2" (2023); Grattafiori et al., "The Llama 3 Herd of Models" (2024).
Pre-norm blocks: RMS norm, grouped-query attention with rotary embedding, SwiGLU feed-forward.
"""

from __future__ import annotations

from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table


@architecture(
    "LlamaForCausalLM",
    model_type="llama",
    # The spelling of the first conversions of Llama 1 and Alpaca, and a ternary Llama (prequantized/qllama.py).
    aliases=("LLaMAForCausalLM", "QLlamaForCausalLM"),
    gguf=GGUF("llama", paired_rows=True),
)
def llama(checkpoint: Checkpoint) -> Decoder:
    """Every layer is `layer`; only the widths of their feed-forward may differ."""
    return decoder(checkpoint, parts.Heads.of(checkpoint.config), default_context=2048)


def decoder(
    checkpoint: Checkpoint, heads: parts.Heads, *, default_context: int, window: int | None = None
) -> Decoder:
    """A decoder of Llama's layers, with attention of these sizes and within this window."""
    config, hidden_size = checkpoint.config, heads.hidden_size
    norm = parts.rms_norm(hidden_size, config.number("rms_norm_eps", 1e-6))
    activation, rope = parts.activation_of(config), rope_table(config, heads.head_dim)
    attention_bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=attention_bias)
            attended = parts.attend(b, q, k, v, heads, rope, window=window)
            return parts.output(b, attended, heads, bias=attention_bias)

        def feed_forward(x: str) -> str:
            return parts.gated_ffn(b, x, hidden_size, width, activation, bias=mlp_bias)

        return parts.pre_norm_layer(b, norm, attention, feed_forward)

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    return parts.decoder(checkpoint, layers, hidden_size, norm, default_context=default_context)
