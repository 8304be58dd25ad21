"""Gemma 1 (Gemma Team, "Gemma: Open Models Based on Gemini Research and Technology", 2024).

Llama's block with a tanh-GELU, norms whose weights are stored less 1, and embeddings times the root of their width.
"""

from __future__ import annotations

from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.architectures.views import ONE_PLUS
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table


@architecture(
    "GemmaForCausalLM",
    model_type="gemma",
    gguf=GGUF("gemma", config={"hidden_act": "gelu_pytorch_tanh"}, applied=frozenset({ONE_PLUS.kind})),
)
def gemma(checkpoint: Checkpoint) -> Decoder:
    """Old configs call the tanh-GELU just "gelu"."""
    config = checkpoint.config
    heads = parts.Heads.of(config, default_kv_heads=16, default_head_dim=256)
    hidden_size = heads.hidden_size
    norm = parts.rms_norm(hidden_size, config.number("rms_norm_eps", 1e-6), ONE_PLUS)
    rope, bias = rope_table(config, heads.head_dim), config.flag("attention_bias", False)
    activation = parts.activation_of(config, "hidden_activation", config.text("hidden_act", "gelu_pytorch_tanh"))
    activation = "gelu_tanh" if activation == "gelu" else activation

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=bias)
            return parts.output(b, parts.attend(b, q, k, v, heads, rope), heads, bias=bias)

        return parts.pre_norm_layer(
            b, norm, attention, lambda x: parts.gated_ffn(b, x, hidden_size, width, activation)
        )

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    scale = parts.rounded(hidden_size**0.5, checkpoint, parts.EMBEDDING)
    return parts.decoder(checkpoint, layers, hidden_size, norm, default_context=8192, tied=True, scale=scale)
