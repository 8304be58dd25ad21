"""Gemma 2 (Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024).

Gemma with norms before and behind every part, soft-caps of scores and logits, and a window in every other layer.
"""

from __future__ import annotations

from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.architectures.views import ONE_PLUS
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import Config
from smc.frontend.rope import rope_table

TENSORS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
METADATA = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
LAYERS_27B = 46


@architecture(
    "Gemma2ForCausalLM",
    model_type="gemma2",
    gguf=GGUF("gemma2", TENSORS, METADATA, applied=frozenset({ONE_PLUS.kind})),
)
def gemma2(checkpoint: Checkpoint) -> Decoder:
    """Layers alternate between a window and the whole context, first the window."""
    config = checkpoint.config
    heads = parts.Heads.of(config, default_kv_heads=4, default_head_dim=256)
    hidden_size = heads.hidden_size
    norm = parts.rms_norm(hidden_size, config.number("rms_norm_eps", 1e-6), ONE_PLUS)
    rope, bias = rope_table(config, heads.head_dim), config.flag("attention_bias", False)
    activation = parts.activation_of(config, "hidden_activation", "gelu_pytorch_tanh")
    # GGUF files do not say it: only the 27B has another one than the others.
    is_27b = config.integer("num_hidden_layers") == LAYERS_27B
    scalar = config.number("query_pre_attn_scalar", hidden_size // heads.heads if is_27b else heads.head_dim)
    caps = [cap_of(config, name, default) for name, default in zip(METADATA.values(), (50.0, 30.0), strict=True)]

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)
        window = parts.window_of(config, index, every=2)

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=bias)
            attended = parts.attend(b, q, k, v, heads, rope, window=window, scale=scalar**-0.5, softcap=caps[0])
            return parts.output(b, attended, heads, bias=bias)

        return parts.both_norms_layer(
            b, norm, attention, lambda x: parts.gated_ffn(b, x, hidden_size, width, activation)
        )

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    scale = parts.rounded(hidden_size**0.5, checkpoint, parts.EMBEDDING)
    return parts.decoder(
        checkpoint, layers, hidden_size, norm, default_context=8192, tied=True, scale=scale, softcap=caps[1]
    )


def cap_of(config: Config, name: str, default: float | None = None) -> float | None:
    """A soft-cap: null is none, and a missing key the default."""
    return None if config.values.get(name, default) is None else config.number(name, default)
