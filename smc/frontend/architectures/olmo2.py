"""OLMo 2 (OLMo Team, "2 OLMo 2 Furious", 2025): norms behind attention and feed-forward only, and of whole q and k."""

from __future__ import annotations

from smc.errors import InputError
from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.qwen3 import HEAD_NORMS
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table

TENSORS = {
    **HEAD_NORMS,
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@architecture("Olmo2ForCausalLM", model_type="olmo2", gguf=GGUF("olmo2", TENSORS))
def olmo2(checkpoint: Checkpoint) -> Decoder:
    """All layers are alike."""
    config = checkpoint.config
    if "sliding_window" in config:  # a GGUF file of Olmo 3 is of this architecture, too
        raise InputError(f"{config.origin}: OLMo with a window (Olmo 3) is not supported")
    heads = parts.Heads.of(config)
    hidden_size, eps = heads.hidden_size, config.number("rms_norm_eps", 1e-5)
    norm = parts.rms_norm(hidden_size, eps)
    q_norm, k_norm = parts.rms_norm(heads.width, eps), parts.rms_norm(heads.kv_width, eps)
    activation, rope = parts.activation_of(config), rope_table(config, heads.head_dim)
    bias = config.flag("attention_bias", False)

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)
        q, k, v = parts.projections(b, "x", heads, bias=bias)
        q = q_norm(b, q, "self_attn.q_norm", "q_normed")
        k = k_norm(b, k, "self_attn.k_norm", "k_normed")
        attended = parts.output(b, parts.attend(b, q, k, v, heads, rope), heads, bias=bias)
        normed = norm(b, attended, "post_attention_layernorm", "attended_norm")
        x = b.add("add", "x", normed, name="attention_residual")
        product = parts.gated_ffn(b, x, hidden_size, width, activation)
        normed = norm(b, product, "post_feedforward_layernorm", "product_norm")
        return b.finish(b.add("add", x, normed, name="ffn_residual"))

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    return parts.decoder(checkpoint, layers, hidden_size, norm, default_context=2048)
