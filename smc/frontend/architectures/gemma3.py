"""Gemma 3, the text models (Gemma Team, "Gemma 3 Technical Report", 2025).

Gemma 2 without soft-caps, with q and k normed head by head, and for each layer that sees all five with a window and a
rotary embedding of their own.
"""

from __future__ import annotations

from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.gemma2 import METADATA, TENSORS, cap_of
from smc.frontend.architectures.qwen3 import HEAD_NORMS
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.architectures.views import ONE_PLUS
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import Config
from smc.frontend.rope import rope_table
from smc.ir import RopeTable

GGUF_METADATA = {
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attention.sliding_window_pattern": "sliding_window_pattern",
}
LAYERS_27B = 62


@architecture(
    "Gemma3ForCausalLM",
    model_type="gemma3_text",
    gguf=GGUF("gemma3", {**TENSORS, **HEAD_NORMS}, GGUF_METADATA, applied=frozenset({ONE_PLUS.kind})),
)
def gemma3(checkpoint: Checkpoint) -> Decoder:
    """Every sixth layer sees the whole context, unless `layer_types` says otherwise."""
    config = checkpoint.config
    heads = parts.Heads.of(config, default_kv_heads=4, default_head_dim=256)
    hidden_size, eps = heads.hidden_size, config.number("rms_norm_eps", 1e-6)
    norm, head_norm = (parts.rms_norm(width, eps, ONE_PLUS) for width in (hidden_size, heads.head_dim))
    ropes, bias = _ropes(config, heads.head_dim), config.flag("attention_bias", False)
    activation = parts.activation_of(config, "hidden_activation", "gelu_pytorch_tanh")
    is_27b = config.integer("num_hidden_layers") == LAYERS_27B
    scalar = config.number("query_pre_attn_scalar", hidden_size // heads.heads if is_27b else heads.head_dim)
    caps = [cap_of(config, name) for name in METADATA.values()]

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)
        window = parts.window_of(config, index, every=config.integer("sliding_window_pattern", 6))

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=bias)
            q = head_norm(b, q, "self_attn.q_norm", "q_normed")
            k = head_norm(b, k, "self_attn.k_norm", "k_normed")
            rope = ropes[window is not None]
            attended = parts.attend(b, q, k, v, heads, rope, window=window, scale=scalar**-0.5, softcap=caps[0])
            return parts.output(b, attended, heads, bias=bias)

        return parts.both_norms_layer(
            b, norm, attention, lambda x: parts.gated_ffn(b, x, hidden_size, width, activation)
        )

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    root = parts.rounded(hidden_size**0.5, checkpoint, parts.EMBEDDING)
    return parts.decoder(
        checkpoint, layers, hidden_size, norm, default_context=131072, tied=True, scale=root, softcap=caps[1]
    )


def _ropes(config: Config, head_dim: int) -> tuple[RopeTable, RopeTable]:
    """The tables of layers that see all, and of those with a window, whose frequencies are never scaled."""
    if "full_attention" in config.section("rope_parameters"):
        kinds = ("full_attention", 1e6), ("sliding_attention", 1e4)
        full, sliding = (rope_table(config, head_dim, kind_of_layer=kind, theta=theta) for kind, theta in kinds)
        return full, sliding
    local = Config({"rope_theta": config.number("rope_local_base_freq", 1e4)}, config.origin)
    return rope_table(config, head_dim, theta=1e6), rope_table(local, head_dim)
