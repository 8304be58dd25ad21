"""Phi 3, 3.5 and 4-mini (Abdin et al., "Phi-3 Technical Report", 2024).

Llama's block, whose q, k and v are parts of one matrix, as gate and up are; rotary frequencies are scaled by LongRoPE.
"""

from __future__ import annotations

from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table

TENSORS = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}


@architecture("Phi3ForCausalLM", model_type="phi3", gguf=GGUF("phi3", TENSORS))
def phi3(checkpoint: Checkpoint) -> Decoder:
    """All layers are alike; a window holds for each."""
    config = checkpoint.config
    heads = parts.Heads.of(config)
    hidden_size = heads.hidden_size
    norm = parts.rms_norm(hidden_size, config.number("rms_norm_eps", 1e-5))
    activation, rope = parts.activation_of(config), rope_table(config, heads.head_dim, partial=1.0)
    window = config.integer("sliding_window") if "sliding_window" in config else None

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)

        def attention(x: str) -> str:
            q, k, v = parts.fused_projections(b, x, heads, "self_attn.qkv_proj")
            return parts.output(b, parts.attend(b, q, k, v, heads, rope, window=window), heads)

        def feed_forward(x: str) -> str:
            sizes, rows = (width, hidden_size), range(width.size)
            path, others = "mlp.gate_up_proj", range(width.size, 2 * width.size)
            gate = b.linear(x, path, *sizes, role="gate", name="gate", slot="gate_proj", part=rows)
            up = b.linear(x, path, *sizes, role="up", name="up", slot="up_proj", part=others)
            return parts.down(b, b.add("mul", b.add(activation, gate), up), hidden_size, width)

        return parts.pre_norm_layer(b, norm, attention, feed_forward)

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    return parts.decoder(checkpoint, layers, hidden_size, norm, default_context=4096)
