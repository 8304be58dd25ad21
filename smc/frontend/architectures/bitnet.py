"""BitNet b1.58 2B4T in floats (Ma et al., "BitNet b1.58 2B4T Technical Report", 2025).

Llama's block with norms in front of the output of attention and of the feed-forward's down, and a squared ReLU.
"""

from __future__ import annotations

from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table

SUB_NORMS = {"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"}


@architecture(
    "BitNetForCausalLM",
    model_type="bitnet",
    # Files that name no activation are of the first checkpoints (1bitLLM/bitnet_b1_58-3B), which have SwiGLU.
    gguf=GGUF("bitnet", SUB_NORMS, {"hidden_activation": "hidden_act"}, {"hidden_act": "silu"}),
)
def bitnet(checkpoint: Checkpoint) -> Decoder:
    """Its weights are rounded by the pass quantize-ternary."""
    config = checkpoint.config
    heads = parts.Heads.of(config)
    hidden_size, eps = heads.hidden_size, config.number("rms_norm_eps", 1e-5)
    norm, attention_norm = parts.rms_norm(hidden_size, eps), parts.rms_norm(heads.width, eps)
    activation, rope = parts.activation_of(config, default="relu2"), rope_table(config, heads.head_dim)
    bias = config.flag("attention_bias", False)

    def layer(index: int, width: int) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=bias)
            attended = parts.attend(b, q, k, v, heads, rope)
            normed = attention_norm(b, attended, "self_attn.attn_sub_norm", "attended_norm")
            return parts.output(b, normed, heads, bias=bias)

        def feed_forward(x: str) -> str:
            product = parts.gated(b, x, hidden_size, width, activation)
            normed = parts.rms_norm(width, eps)(b, product, "mlp.ffn_sub_norm", "product_norm")
            return parts.down(b, normed, hidden_size, width)

        return parts.pre_norm_layer(b, norm, attention, feed_forward)

    layers = (layer(index, width.size) for index, width in enumerate(parts.widths(config)))
    return parts.decoder(checkpoint, layers, hidden_size, norm, default_context=2048)
