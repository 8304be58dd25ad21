"""Parts of decoders: functions that add ops to a `Block`.

Paths are those of Hugging Face checkpoints; a part's defaults are Llama's names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from smc.errors import InputError
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.views import Source, Transform
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import CONTEXT, Config
from smc.ir import Function, RopeTable, TensorType, encode_float
from smc.ir.activations import ACTIVATIONS

Norm = Callable[[Block, str, str, str], str]
"""(block, x, path, name) → the normed x."""

EMBEDDING = "model.embed_tokens.weight"
"""Where most checkpoints keep it."""

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}
"""The names of activations in transformers → in the ir."""


def activation_of(config: Config, key: str = "hidden_act", default: str = "silu") -> str:
    """The ir's name of the activation that a config names; InputError if there is none."""
    name = config.text(key, default)
    if ACTIVATION_NAMES.get(name) not in ACTIVATIONS:
        raise InputError(f"{config.origin}: the activation {name} is not supported ({', '.join(ACTIVATION_NAMES)} are)")
    return ACTIVATION_NAMES[name]


@dataclass(frozen=True)
class Heads:
    """The sizes of attention."""

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Config, *, default_kv_heads: int | None = None, default_head_dim: int | None = None) -> Heads:
        """Read them from a config; InputError if they do not fit each other."""
        hidden_size, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        if config.values.get("head_dim") is None and default_head_dim is None and hidden_size % heads:
            raise InputError(f"{config.origin}: hidden_size {hidden_size} is not a multiple of {heads} attention heads")
        kv_heads = config.integer("num_key_value_heads", default_kv_heads or heads)
        if heads % kv_heads:
            raise InputError(
                f"{config.origin}: {heads} attention heads are not a multiple of {kv_heads} key-value heads"
            )
        head_dim = config.integer("head_dim", default_head_dim or hidden_size // heads or 1)
        if head_dim % 2:
            raise InputError(f"{config.origin}: head_dim must be even for the rotary embedding, not {head_dim}")
        return cls(hidden_size, heads, kv_heads, head_dim)

    @property
    def width(self) -> int:
        """Columns of q."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of k and of v."""
        return self.kv_heads * self.head_dim


def rounded(value: float, checkpoint: Checkpoint, tensor: str) -> float:
    """A number rounded to the dtype of a stored tensor."""
    import torch

    stored = checkpoint.tensors.get(tensor)
    if stored is None or not stored.encoding.is_float:
        return value
    number = encode_float(torch.tensor([value], dtype=torch.float64), stored.encoding)
    return float(number.decode()[0])


# ---- norms


def rms_norm(width: int, eps: float, transform: Transform | None = None) -> Norm:
    """An RMS norm of rows of this width, its weights transformed (Gemma stores them less 1)."""

    def norm(b: Block, x: str, path: str, name: str) -> str:
        weight = b.parameter(f"{path}.weight", width, role="norm", transform=transform)
        return b.add("rms_norm", x, weight, name=name, eps=eps)

    return norm


def layer_norm(width: int, eps: float, *, bias: bool = True) -> Norm:
    """A layer norm of rows of this width."""

    def norm(b: Block, x: str, path: str, name: str) -> str:
        weights = [b.parameter(f"{path}.weight", width, role="norm")]
        weights += [b.parameter(f"{path}.bias", width, role="bias")] if bias else []
        return b.add("layer_norm", x, *weights, name=name, bias=bias, eps=eps)

    return norm


# ---- attention


def projections(b: Block, x: str, heads: Heads, *, bias: bool = False, path: str = "self_attn") -> tuple[str, str, str]:
    """q, k and v by a matrix each."""
    q = b.linear(x, f"{path}.q_proj", heads.width, heads.hidden_size, role="query", bias=bias, name="q")
    k = b.linear(x, f"{path}.k_proj", heads.kv_width, heads.hidden_size, role="key", bias=bias, name="k")
    v = b.linear(x, f"{path}.v_proj", heads.kv_width, heads.hidden_size, role="value", bias=bias, name="v")
    return q, k, v


def fused_projections(
    b: Block, x: str, heads: Heads, path: str, *, bias: bool = False, transform: Transform | None = None
) -> tuple[str, str, str]:
    """q, k and v by parts of one matrix, whose rows are those of q, then k, then v."""
    ends = (0, heads.width, heads.width + heads.kv_width, heads.width + 2 * heads.kv_width)
    parts = []
    for index, (name, role) in enumerate((("q", "query"), ("k", "key"), ("v", "value"))):
        part = range(ends[index], ends[index + 1])
        parts.append(
            b.linear(
                x,
                path,
                len(part),
                heads.hidden_size,
                role=role,
                bias=bias,
                name=name,
                slot=f"{name}_proj",
                part=part,
                transform=transform,
            )
        )
    q, k, v = parts
    return q, k, v


def attend(
    b: Block,
    q: str,
    k: str,
    v: str,
    heads: Heads,
    rope: RopeTable | None,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> str:
    """Attention of q and k, rotated where the layer has a table, over v. scale: 1 / sqrt(head_dim) if not given."""
    if rope is not None:
        rotate = {"head_dim": heads.head_dim, "table": rope}
        q, k = (b.add("rope", x, "positions", name=f"{n}_rope", **rotate) for x, n in ((q, "q"), (k, "k")))
    return b.add(
        "attention",
        q,
        k,
        v,
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        scale=heads.head_dim**-0.5 if scale is None else scale,
        window=window,
        softcap=softcap,
    )


def window_of(config: Config, layer: int, *, every: int | None = None) -> int | None:
    """The window of a layer: `layer_types` says which layers have one; without it, all but each `every`th."""
    kinds, count = config.items("layer_types"), config.integer("num_hidden_layers")
    if kinds:
        if len(kinds) != count or not set(map(str, kinds)) <= {"sliding_attention", "full_attention"}:
            raise config.fault("layer_types", f"a list of {count} kinds, sliding_attention or full_attention")
        slides = kinds[layer] == "sliding_attention"
    else:
        slides = every is not None and (layer + 1) % every != 0
    return config.integer("sliding_window") if slides else None


def output(
    b: Block,
    x: str,
    heads: Heads,
    *,
    bias: bool = False,
    path: str = "self_attn.o_proj",
    transform: Transform | None = None,
) -> str:
    """The product behind attention."""
    shape = heads.hidden_size, heads.width
    return b.linear(x, path, *shape, role="output", bias=bias, name="o", transform=transform)


# ---- feed-forward


def widths(config: Config, key: str = "intermediate_size") -> Iterator[Width]:
    """The width of every layer's feed-forward: one number for all, or a list. One at a time: a config may say a billion
    layers, of which the checkpoint lacks the tensors."""
    count = config.integer("num_hidden_layers")
    found = config.integers(key, count)
    sizes = found if isinstance(found, list) else itertools.repeat(found, count)
    return (Width("ffn", size) for size in sizes)


def gated(b: Block, x: str, hidden_size: int, width: int | Width, activation: str, *, bias: bool = False) -> str:
    """activation(gate(x)) * up(x)."""
    gate = b.linear(x, "mlp.gate_proj", width, hidden_size, role="gate", bias=bias, name="gate")
    up = b.linear(x, "mlp.up_proj", width, hidden_size, role="up", bias=bias, name="up")
    return b.add("mul", b.add(activation, gate), up)


def down(
    b: Block,
    x: str,
    hidden_size: int,
    width: int | Width,
    *,
    bias: bool = False,
    path: str = "mlp.down_proj",
    transform: Transform | None = None,
) -> str:
    """The product that ends a feed-forward."""
    return b.linear(x, path, hidden_size, width, role="down", bias=bias, name="down", transform=transform)


def gated_ffn(b: Block, x: str, hidden_size: int, width: int | Width, activation: str, *, bias: bool = False) -> str:
    """down(activation(gate(x)) * up(x))."""
    return down(b, gated(b, x, hidden_size, width, activation, bias=bias), hidden_size, width, bias=bias)


# ---- layers

Part = Callable[[str], str]
"""x → the result of a part of a layer."""


def pre_norm_layer(b: Block, norm: Norm, attention: Part, feed_forward: Part) -> Block:
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""
    attended = attention(norm(b, "x", "input_layernorm", "attention_norm"))
    x = b.add("add", "x", attended, name="attention_residual")
    product = feed_forward(norm(b, x, "post_attention_layernorm", "ffn_norm"))
    return b.finish(b.add("add", x, product, name="ffn_residual"))


def both_norms_layer(b: Block, norm: Norm, attention: Part, feed_forward: Part) -> Block:
    """x + norm(attention(norm(x))), then x + norm(feed_forward(norm(x))), as in Gemma 2 and 3."""
    attended = attention(norm(b, "x", "input_layernorm", "attention_norm"))
    x = b.add("add", "x", norm(b, attended, "post_attention_layernorm", "attended_norm"), name="attention_residual")
    product = feed_forward(norm(b, x, "pre_feedforward_layernorm", "ffn_norm"))
    normed = norm(b, product, "post_feedforward_layernorm", "product_norm")
    return b.finish(b.add("add", x, normed, name="ffn_residual"))


# ---- the decoder


def decoder(
    checkpoint: Checkpoint,
    layers: Iterable[Block],
    hidden_size: int,
    norm: Norm,
    *,
    default_context: int,
    embedding: str = EMBEDDING,
    final_norm: str = "model.norm",
    head: str = "lm_head.weight",
    tied: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Decoder:
    """An embedding, the layers, a norm and a head.

    tied: what the config's class has for `tie_word_embeddings`. scale: of embeddings. softcap: of logits.
    """
    config = checkpoint.config
    vocab_size = config.integer("vocab_size")
    first, last = _ends(checkpoint, embedding, head, tied)
    return Decoder(
        vocab_size=vocab_size,
        context_length=config.integer("max_position_embeddings", default_context, CONTEXT),
        embed=_embed(vocab_size, hidden_size, first, scale),
        layers=layers,
        head=_head(vocab_size, hidden_size, final_norm, norm, last, softcap),
        unused="|".join(name.replace(".", r"\.") for name in (embedding, head)),
    )


def _ends(checkpoint: Checkpoint, embedding: str, head: str, default: bool) -> tuple[Source, Source]:
    """The tensors of the embedding and the head: one if they are tied.

    As transformers does it: a tied pair may be stored under either name, and if both are stored and differ, the
    checkpoint means two matrices whatever its config says.
    """
    tensors = checkpoint.tensors
    apart = Source(embedding), Source(head)
    if not checkpoint.config.flag("tie_word_embeddings", default):
        return apart
    both = embedding in tensors and head in tensors and tensors[embedding].shape == tensors[head].shape
    if both and not tensors[embedding].values().equal(tensors[head].values()):
        return apart
    only = Source(head if head in tensors and embedding not in tensors else embedding)
    return only, only


def _embed(vocab_size: int, hidden_size: int, table: Source, scale: float) -> Block:
    b = Block(Function("embed"))
    tokens = b.function.input("tokens", TensorType(("n",), "i32"))
    rows = b.parameter("", vocab_size, hidden_size, role="embedding", slot="embed_tokens", source=table)
    return b.finish(b.add("embedding", tokens, rows, scale=scale))


def _head(vocab_size: int, hidden_size: int, path: str, norm: Norm, matrix: Source, softcap: float | None) -> Block:
    b = Block(Function("head"))
    x = b.function.input("x", TensorType(("n", hidden_size)))
    normed = norm(b, x, path, "rms_norm")
    weight = b.parameter("", vocab_size, hidden_size, role="head", slot="lm_head", source=matrix)
    logits = b.add("linear", normed, weight, name="logits")
    return b.finish(logits if softcap is None else b.add("softcap", logits, cap=softcap))
