"""GPT-2 and DistilGPT2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).

Learned positions, layer norms and biases everywhere, a GELU without gate. Matrices are stored as [columns, rows]; one
of them makes q, k and v.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from smc.errors import InputError
from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.architectures.views import TRANSPOSE, Source
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import CONTEXT, Config
from smc.ir import Function, TensorType

KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
}
"""What GPT-2's config.json calls what others call so."""

TENSORS = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
MASKS = r".*\.attn\.(bias|masked_bias)"
"""Tensors of old checkpoints that follow from the config."""


@architecture(
    "GPT2LMHeadModel",
    model_type="gpt2",
    gguf=GGUF(
        "gpt2",
        TENSORS,
        {"attention.layer_norm_epsilon": "layer_norm_epsilon"},
        layer="transformer.h.{}.",
        applied=frozenset({TRANSPOSE.kind}),
    ),
)
def gpt2(checkpoint: Checkpoint) -> Decoder:
    """All layers are alike, but that attention may be scaled by the layer's number."""
    config = _usual(checkpoint.config)
    checkpoint = replace(checkpoint, config=config)
    # The first checkpoints have names without the "transformer." of the class with a head.
    prefix = "" if "wte.weight" in checkpoint.tensors else "transformer."
    hidden_size, count = config.integer("hidden_size"), config.integer("num_attention_heads")
    if hidden_size % count:
        raise InputError(f"{config.origin}: hidden_size {hidden_size} is not a multiple of {count} attention heads")
    heads = parts.Heads(hidden_size, count, count, hidden_size // count)
    norm = parts.layer_norm(hidden_size, config.number("layer_norm_epsilon", 1e-5))
    activation = parts.activation_of(config, "activation_function", "gelu_new")
    by_root, by_layer = config.flag("scale_attn_weights", True), config.flag("scale_attn_by_inverse_layer_idx", False)

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"{prefix}h.{index}.", hidden_size)
        scale = (heads.head_dim**-0.5 if by_root else 1.0) / (index + 1 if by_layer else 1)
        normed = norm(b, "x", "ln_1", "attention_norm")
        q, k, v = parts.fused_projections(b, normed, heads, "attn.c_attn", bias=True, transform=TRANSPOSE)
        attended = parts.attend(b, q, k, v, heads, None, scale=scale)
        attended = parts.output(b, attended, heads, bias=True, path="attn.c_proj", transform=TRANSPOSE)
        x = b.add("add", "x", attended, name="attention_residual")
        normed = norm(b, x, "ln_2", "ffn_norm")
        fc = b.linear(
            normed, "mlp.c_fc", width, hidden_size, role="up", bias=True, name="up", slot="c_fc", transform=TRANSPOSE
        )
        product = b.add(activation, fc)
        product = b.linear(
            product,
            "mlp.c_proj",
            hidden_size,
            width,
            role="down",
            bias=True,
            name="down",
            slot="mlp_c_proj",
            transform=TRANSPOSE,
        )
        return b.finish(b.add("add", x, product, name="ffn_residual"))

    found = parts.decoder(
        checkpoint,
        (layer(index, width) for index, width in enumerate(parts.widths(config))),
        hidden_size,
        norm,
        default_context=1024,
        embedding=f"{prefix}wte.weight",
        final_norm=f"{prefix}ln_f",
        tied=True,
    )
    embed = _embed(found, hidden_size, config.integer("max_position_embeddings", 1024, CONTEXT), f"{prefix}wpe.weight")
    return replace(found, embed=embed, unused=f"{found.unused}|{MASKS}")


def _usual(config: Config) -> Config:
    """The config with the keys of other families."""
    values: dict[str, Any] = dict(config.values)
    if "n_embd" in values:
        values |= {name: values.get(key) for key, name in KEYS.items()}
    if values.get("intermediate_size") is None:
        values["intermediate_size"] = 4 * Config(values, config.origin).integer("hidden_size")
    return Config(values, config.origin)


def _embed(decoder: Decoder, hidden_size: int, count: int, name: str) -> Block:
    """The rows of tokens plus those of positions."""
    b = Block(Function("embed"))
    tokens = b.function.input("tokens", TensorType(("n",), "i32"))
    positions = b.function.input("positions", TensorType(("n",), "i32"))
    source = decoder.embed.sources["embed_tokens"]
    table = b.parameter("", decoder.vocab_size, hidden_size, role="embedding", slot="embed_tokens", source=source)
    places = b.parameter("", count, hidden_size, role="positions", slot="positions_table", source=Source(name))
    rows = b.add("embedding", tokens, table, name="token_rows")
    return b.finish(b.add("add", rows, b.add("embedding", positions, places, name="position_rows")))
