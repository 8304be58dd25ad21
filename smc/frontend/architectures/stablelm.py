"""StableLM 2 (Bellagente et al., "Stable LM 2 1.6B Technical Report", 2024).

Layer norms with biases, a rotary embedding of a part of each head, biases of q, k and v; the 12B's attention and
feed-forward lie side by side.
"""

from __future__ import annotations

from smc.errors import InputError
from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table


@architecture(
    "StableLmForCausalLM",
    model_type="stablelm",
    aliases=("StableLMEpochForCausalLM",),
    gguf=GGUF("stablelm", metadata={"use_parallel_residual": "use_parallel_residual"}),
)
def stablelm(checkpoint: Checkpoint) -> Decoder:
    """Norms of single heads, which the 12B has, are not supported."""
    config = checkpoint.config
    heads = parts.Heads.of(config, default_kv_heads=32)
    hidden_size = heads.hidden_size
    if config.flag("qk_layernorm", False):
        raise InputError(f"{config.origin}: StableLM with norms of single heads (qk_layernorm) is not supported")
    norm = parts.layer_norm(hidden_size, config.number("layer_norm_eps", 1e-5))
    activation, rope = parts.activation_of(config), rope_table(config, heads.head_dim, partial=0.25)
    bias = config.flag("use_qkv_bias", config.flag("attention_bias", False))
    parallel = config.flag("use_parallel_residual", False)

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=bias)
            return parts.output(b, parts.attend(b, q, k, v, heads, rope), heads)

        def feed_forward(x: str) -> str:
            return parts.gated_ffn(b, x, hidden_size, width, activation)

        if not parallel:
            return parts.pre_norm_layer(b, norm, attention, feed_forward)
        normed = norm(b, "x", "input_layernorm", "attention_norm")
        x = b.add("add", "x", attention(normed), name="attention_residual")
        return b.finish(b.add("add", x, feed_forward(normed), name="ffn_residual"))

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    return parts.decoder(checkpoint, layers, hidden_size, norm, default_context=4096)
