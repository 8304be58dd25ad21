"""Llama 1 to 3 and all that share its shape: TinyLlama, SmolLM, SOLAR, Alpaca.

Touvron et al., "LLaMA" (2023) and "Llama 2" (2023); Grattafiori et al., "The Llama 3 Herd of Models" (2024).
Pre-norm blocks: RMS norm, grouped-query attention with rotary embedding, SwiGLU feed-forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from smc.errors import InputError
from smc.frontend.architectures.decoder import Decoder, Stage
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import CONTEXT, Config, rope_of
from smc.ir import Function, RopeScaling, TensorType

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
MODULES = {
    "input_layernorm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "post_attention_layernorm": "post_attention_layernorm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
"""A block's slots, and where a layer of the checkpoint keeps them."""


@dataclass(frozen=True)
class Block:
    """What the code of a block depends on; the width of the feed-forward is the symbol "ffn"."""

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    attention_bias: bool
    mlp_bias: bool
    window: int | None = None

    @classmethod
    def of(cls, config: Config, *, default_kv_heads: int | None = None, window: int | None = None) -> Block:
        """Read the config, in transformers-4 or -5 spelling; InputError where it asks for something unsupported."""
        activation = config.text("hidden_act", "silu")
        if activation != "silu":
            raise InputError(f"{config.origin}: the activation {activation} is not supported (silu is)")
        hidden_size, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        if config.values.get("head_dim") is None and hidden_size % heads:
            raise InputError(f"{config.origin}: hidden_size {hidden_size} is no multiple of {heads} attention heads")
        kv_heads = config.integer("num_key_value_heads", default_kv_heads or heads)
        if heads % kv_heads:
            raise InputError(f"{config.origin}: {heads} attention heads are no multiple of {kv_heads} key-value heads")
        head_dim = config.integer("head_dim", hidden_size // heads or 1)
        if head_dim % 2:
            raise InputError(f"{config.origin}: head_dim must be even for the rotary embedding, not {head_dim}")
        theta, scaling = rope_of(config)
        return cls(
            hidden_size,
            heads,
            kv_heads,
            head_dim,
            config.number("rms_norm_eps", 1e-6),
            theta,
            scaling,
            config.flag("attention_bias", False),
            config.flag("mlp_bias", False),
            window,
        )

    def function(self, name: str) -> Function:
        """block(x f32[n, hidden_size], positions i32[n]) → f32[n, hidden_size]."""
        f = Function(name)
        x = f.input("x", TensorType(("n", self.hidden_size)))
        positions = f.input("positions", TensorType(("n",), "i32"))
        attended = self._attention(f, x, positions)
        f.set_outputs(self._feed_forward(f, attended))
        return f

    def _attention(self, f: Function, x: str, positions: str) -> str:
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        normed = self._norm(f, x, "input_layernorm", "attention_norm")
        q = linear(f, normed, "q_proj", width, self.hidden_size, self.attention_bias, "q")
        k = linear(f, normed, "k_proj", kv_width, self.hidden_size, self.attention_bias, "k")
        v = linear(f, normed, "v_proj", kv_width, self.hidden_size, self.attention_bias, "v")
        attention = f.add(
            "attention",
            self._rope(f, q, positions, "q_rope"),
            self._rope(f, k, positions, "k_rope"),
            v,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            window=self.window,
        )
        o = linear(f, attention, "o_proj", self.hidden_size, width, self.attention_bias, "o")
        return f.add("add", x, o, name="attention_residual")

    def _rope(self, f: Function, x: str, positions: str, name: str) -> str:
        head_dim, theta, scaling = self.head_dim, self.rope_theta, self.rope_scaling
        return f.add("rope", x, positions, name=name, head_dim=head_dim, theta=theta, scaling=scaling)

    def _feed_forward(self, f: Function, x: str) -> str:
        normed = self._norm(f, x, "post_attention_layernorm", "ffn_norm")
        gate = linear(f, normed, "gate_proj", "ffn", self.hidden_size, self.mlp_bias, "gate")
        up = linear(f, normed, "up_proj", "ffn", self.hidden_size, self.mlp_bias, "up")
        product = f.add("mul", f.add("silu", gate), up)
        down = linear(f, product, "down_proj", self.hidden_size, "ffn", self.mlp_bias, "down")
        return f.add("add", x, down, name="ffn_residual")

    def _norm(self, f: Function, x: str, slot: str, name: str) -> str:
        return f.add("rms_norm", x, f.parameter(slot, self.hidden_size), name=name, eps=self.eps)


def linear(f: Function, x: str, slot: str, rows: int | str, columns: int | str, bias: bool, name: str) -> str:
    """Add the slot of a [rows, columns] matrix, that of its bias if it has one, and the `linear` that reads them."""
    weights = [f.parameter(slot, rows, columns)]
    if bias:
        weights.append(f.parameter(f"{slot}.bias", rows))
    return f.add("linear", x, *weights, name=name, bias=bias, residual=False)


def decoder(checkpoint: Checkpoint) -> Decoder:
    """The functions of a LlamaForCausalLM checkpoint."""
    return decoder_of(checkpoint, Block.of(checkpoint.config), default_context=2048)


def decoder_of(checkpoint: Checkpoint, block: Block, default_context: int) -> Decoder:
    """The decoder whose layers are all `block`; only their feed-forward widths may differ (`intermediate_size`)."""
    config = checkpoint.config
    vocab_size = config.integer("vocab_size")
    embedding, head = _ends(checkpoint)
    return Decoder(
        vocab_size=vocab_size,
        context_length=config.integer("max_position_embeddings", default_context, CONTEXT),
        embed=Stage(_embed(vocab_size, block.hidden_size), {"embed_tokens": embedding}),
        layers=_layers(config, block),
        head=Stage(_head(vocab_size, block.hidden_size, block.eps), {"norm": NORM, "lm_head": head}),
        unused=frozenset({EMBEDDING, HEAD}),
    )


def _ends(checkpoint: Checkpoint) -> tuple[str, str]:
    """The tensors of the embedding and the head: one if they are tied.

    As transformers does it: a tied pair may be stored under either name, and if both are stored and differ, the
    checkpoint means two matrices whatever its config says.
    """
    tensors = checkpoint.tensors
    if not checkpoint.config.flag("tie_word_embeddings", False):
        return EMBEDDING, HEAD
    both = EMBEDDING in tensors and HEAD in tensors and tensors[EMBEDDING].shape == tensors[HEAD].shape
    if both and not tensors[EMBEDDING].values().equal(tensors[HEAD].values()):
        return EMBEDDING, HEAD
    only = HEAD if HEAD in tensors and EMBEDDING not in tensors else EMBEDDING
    return only, only


def _embed(vocab_size: int, hidden_size: int) -> Function:
    f = Function("embed")
    tokens = f.input("tokens", TensorType(("n",), "i32"))
    f.set_outputs(f.add("embedding", tokens, f.parameter("embed_tokens", vocab_size, hidden_size)))
    return f


def _layers(config: Config, block: Block) -> Iterator[Stage]:
    function = block.function("block")
    count = config.integer("num_hidden_layers")
    widths = config.integers("intermediate_size", count)
    for index in range(count):
        tensors = {slot.name: _tensor(index, slot.name) for slot in function.parameters()}
        yield Stage(function, tensors, {"ffn": widths[index] if isinstance(widths, list) else widths})


def _tensor(layer: int, slot: str) -> str:
    """The checkpoint's name for a slot of a layer: "q_proj" → "model.layers.0.self_attn.q_proj.weight"."""
    module, _, kind = slot.partition(".")
    return f"model.layers.{layer}.{MODULES[module]}.{kind or 'weight'}"


def _head(vocab_size: int, hidden_size: int, eps: float) -> Function:
    f = Function("head")
    x = f.input("x", TensorType(("n", hidden_size)))
    normed = f.add("rms_norm", x, f.parameter("norm", hidden_size), eps=eps)
    f.set_outputs(linear(f, normed, "lm_head", vocab_size, hidden_size, False, "logits"))
    return f
