"""StableLM 2 (Bellagente et al., "Stable LM 2 1.6B Technical Report", 2024).

Layer norms with biases, a rotary embedding of a part of each head, biases of q, k and v; the 12B's attention and
feed-forward lie side by side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.frontend.architectures import parts
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint, StoredTensor
from smc.frontend.rope import rope_table
from smc.ir import F32

if TYPE_CHECKING:
    from torch import Tensor

HEAD_NORM = re.compile(r"(model\.layers\.\d+\.self_attn\.[qk]_layernorm)\.(?:norms\.(\d+)\.)?weight")
"""Of a head, as transformers has it; of all, as GGUF files do."""


@architecture(
    "StableLmForCausalLM",
    model_type="stablelm",
    aliases=("StableLMEpochForCausalLM",),
    gguf=GGUF(
        "stablelm",
        {"attn_q_norm": "self_attn.q_layernorm", "attn_k_norm": "self_attn.k_layernorm"},
        {"use_parallel_residual": "use_parallel_residual"},
    ),
)
def stablelm(checkpoint: Checkpoint) -> Decoder:
    """All layers are alike. The 12B norms the heads of q and k, each with weights of its own."""
    config = checkpoint.config
    heads = parts.Heads.of(config, default_kv_heads=32)
    hidden_size = heads.hidden_size
    eps, first = config.number("layer_norm_eps", 1e-5), "model.layers.0.self_attn.q_layernorm."
    # GGUF files have no key for it.
    norms_heads = config.flag("qk_layernorm", any(name.startswith(first) for name in checkpoint.tensors))
    if norms_heads:
        checkpoint = replace(checkpoint, tensors=_joined_norms(checkpoint, heads))
    norm = parts.layer_norm(hidden_size, eps)
    activation, rope = parts.activation_of(config), rope_table(config, heads.head_dim, partial=0.25)
    bias = config.flag("use_qkv_bias", config.flag("attention_bias", False))
    parallel = config.flag("use_parallel_residual", False)

    def norm_heads(b: Block, x: str, width: int, name: str) -> str:
        weight = b.parameter(f"self_attn.{name}_layernorm.weight", width, role="norm")
        return b.add("head_layer_norm", x, weight, name=f"{name}_norm", head_dim=heads.head_dim, eps=eps)

    def layer(index: int, width: Width) -> Block:
        b = Block.layer(f"model.layers.{index}.", hidden_size)

        def attention(x: str) -> str:
            q, k, v = parts.projections(b, x, heads, bias=bias)
            if norms_heads:
                q, k = norm_heads(b, q, heads.width, "q"), norm_heads(b, k, heads.kv_width, "k")
            return parts.output(b, parts.attend(b, q, k, v, heads, rope), heads)

        def feed_forward(x: str) -> str:
            return parts.gated_ffn(b, x, hidden_size, width, activation)

        if not parallel:
            return parts.pre_norm_layer(b, norm, attention, feed_forward)
        normed = norm(b, "x", "input_layernorm", "attention_norm")
        x = b.add("add", "x", attention(normed), name="attention_residual")
        return b.finish(b.add("add", x, feed_forward(normed), name="ffn_residual"))

    layers = (layer(index, width) for index, width in enumerate(parts.widths(config)))
    decoder = parts.decoder(checkpoint, layers, hidden_size, norm, default_context=4096)
    return replace(decoder, tensors=checkpoint.tensors)


def _joined_norms(checkpoint: Checkpoint, heads: parts.Heads) -> Mapping[str, StoredTensor]:
    """The tensors, those of the norms of a layer's heads as one, one head after the other.

    InputError if a head's is missing, or of another shape.
    """
    rest, found = dict(checkpoint.tensors), dict[str, dict[int, StoredTensor]]()
    for name in checkpoint.tensors:
        if match := HEAD_NORM.fullmatch(name):
            found.setdefault(match[1], {})[int(match[2] or 0)] = rest.pop(name)
    for module, norms in found.items():
        count = heads.heads if module.endswith("q_layernorm") else heads.kv_heads
        shapes = {tensor.shape for tensor in norms.values()}
        whole = shapes == {(count, heads.head_dim)} or shapes == {(count * heads.head_dim,)}
        if not whole and (sorted(norms) != list(range(count)) or shapes != {(heads.head_dim,)}):
            raise InputError(f"{checkpoint.config.origin}: {module} has not {count} norms of {heads.head_dim} channels")
        ordered = [norms[head] for head in sorted(norms)]
        name = f"{module}.weight"
        rest[name] = StoredTensor(name, (count * heads.head_dim,), F32, partial(_join, ordered), ordered[0].origin)
    return rest


def _join(norms: list[StoredTensor]) -> Tensor:
    import torch

    return torch.cat([norm.values().float().reshape(-1) for norm in norms])
