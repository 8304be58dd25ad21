"""GPT-NeoX and Pythia (Black et al., "GPT-NeoX-20B", 2022; Biderman et al., "Pythia", 2023).

Layer norms and biases everywhere, a GELU without gate, attention and feed-forward side by side, and a rotary embedding
of a part of each head. One matrix makes q, k and v, head by head.
"""

from __future__ import annotations

from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.architectures.views import reordered
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table

TENSORS = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
APART = "heads_apart"


@architecture(
    "GPTNeoXForCausalLM",
    model_type="gpt_neox",
    gguf=GGUF(
        "gptneox",
        TENSORS,
        {"use_parallel_residual": "use_parallel_residual"},
        {"hidden_act": "gelu"},
        layer="gpt_neox.layers.{}.",
        applied=frozenset({APART}),
    ),
)
def gpt_neox(checkpoint: Checkpoint) -> Decoder:
    """All layers are alike."""
    config = checkpoint.config
    hidden_size, count = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = hidden_size // count
    heads = parts.Heads(hidden_size, count, count, head_dim)
    norm = parts.layer_norm(hidden_size, config.number("layer_norm_eps", 1e-5))
    theta = config.number("rotary_emb_base", 10000.0)
    activation = parts.activation_of(config, default="gelu")
    rope = rope_table(config, head_dim, theta=theta, partial=0.25)
    bias, parallel = config.flag("attention_bias", True), config.flag("use_parallel_residual", True)
    apart = reordered(APART, lambda rows: rows.view(-1, 3, head_dim, *rows.shape[1:]).transpose(0, 1).flatten(0, 2))

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"gpt_neox.layers.{index}.", hidden_size)
        path = "attention.query_key_value"
        normed = norm(b, "x", "input_layernorm", "attention_norm")
        q, k, v = parts.fused_projections(b, normed, heads, path, bias=bias, transform=apart)
        attended = parts.attend(b, q, k, v, heads, rope)
        attended = parts.output(b, attended, heads, bias=bias, path="attention.dense")
        x = b.add("add", "x", attended, name="attention_residual")
        normed = norm(b, "x" if parallel else x, "post_attention_layernorm", "ffn_norm")
        up = b.linear(normed, "mlp.dense_h_to_4h", width, hidden_size, role="up", bias=True, name="up")
        product = parts.down(b, b.add(activation, up), hidden_size, width, bias=True, path="mlp.dense_4h_to_h")
        return b.finish(b.add("add", x, product, name="ffn_residual"))

    return parts.decoder(
        checkpoint,
        (layer(index, width) for index, width in enumerate(parts.widths(config))),
        hidden_size,
        norm,
        default_context=2048,
        embedding="gpt_neox.embed_in.weight",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out.weight",
    )
