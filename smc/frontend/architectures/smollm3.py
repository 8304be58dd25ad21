"""SmolLM 3 (Hugging Face, 2025): Llama's block, every fourth layer without a rotary embedding."""

from __future__ import annotations

from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table


@architecture("SmolLM3ForCausalLM", model_type="smollm3", gguf=GGUF("smollm3", paired_rows=True))
def smollm3(checkpoint: Checkpoint) -> Decoder:
    """`no_rope_layers` has a 1 for each layer that does rotate; windows go by `layer_types`."""
    config = checkpoint.config
    heads = parts.Heads.of(config, default_kv_heads=4)
    hidden_size = heads.hidden_size
    norm = parts.rms_norm(hidden_size, config.number("rms_norm_eps", 1e-6))
    activation, rope = parts.activation_of(config), rope_table(config, heads.head_dim)
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    slides = config.flag("use_sliding_window", False)
    count, every = config.integer("num_hidden_layers"), config.integer("no_rope_layer_interval", 4)
    listed = config.items("no_rope_layers")
    if listed and len(listed) != count:
        raise config.fault("no_rope_layers", f"a list of {count} numbers, one per layer")

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)
        window = parts.window_of(config, index) if slides else None
        rotates = listed[index] if listed else (index + 1) % every

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=bias)
            attended = parts.attend(b, q, k, v, heads, rope if rotates else None, window=window)
            return parts.output(b, attended, heads, bias=bias)

        return parts.pre_norm_layer(
            b, norm, attention, lambda x: parts.gated_ffn(b, x, hidden_size, width, activation, bias=mlp_bias)
        )

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    return parts.decoder(checkpoint, layers, hidden_size, norm, default_context=32768, tied=True)
