"""Qwen 2 and 2.5 (Yang et al., "Qwen2 Technical Report", 2024): Llama's block with biases of q, k and v."""

from __future__ import annotations

from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import Config
from smc.frontend.rope import rope_table


@architecture("Qwen2ForCausalLM", model_type="qwen2", gguf=GGUF("qwen2"))
def qwen2(checkpoint: Checkpoint) -> Decoder:
    """All layers are alike, except for windows if a config turns them on."""
    heads = parts.Heads.of(checkpoint.config, default_kv_heads=32)
    return decoder(checkpoint, heads, bias=True, output_bias=False, head_norms=False)


def decoder(checkpoint: Checkpoint, heads: parts.Heads, *, bias: bool, output_bias: bool, head_norms: bool) -> Decoder:
    """A decoder of Qwen's layers. bias: of q, k and v. head_norms: q and k are normed head by head."""
    config, hidden_size = checkpoint.config, heads.hidden_size
    eps = config.number("rms_norm_eps", 1e-6)
    norm, head_norm = parts.rms_norm(hidden_size, eps), parts.rms_norm(heads.head_dim, eps)
    activation, rope = parts.activation_of(config), rope_table(config, heads.head_dim)

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=bias)
            if head_norms:
                q = head_norm(b, q, "self_attn.q_norm", "q_normed")
                k = head_norm(b, k, "self_attn.k_norm", "k_normed")
            attended = parts.attend(b, q, k, v, heads, rope, window=_window(config, index))
            return parts.output(b, attended, heads, bias=output_bias)

        def feed_forward(x: str) -> str:
            return parts.gated_ffn(b, x, hidden_size, width, activation)

        return parts.pre_norm_layer(b, norm, attention, feed_forward)

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    return parts.decoder(checkpoint, layers, hidden_size, norm, default_context=32768)


def _window(config: Config, layer: int) -> int | None:
    """Of the layers from `max_window_layers` on, where the config turns windows on at all."""
    if not config.flag("use_sliding_window", False):
        return None
    if config.items("layer_types"):
        return parts.window_of(config, layer)
    return config.integer("sliding_window", 4096) if layer >= config.integer("max_window_layers", 28) else None
