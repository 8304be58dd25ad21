"""GGUF files as checkpoints: metadata → config, tensors under their Hugging Face names."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smc.errors import InputError
from smc.fields import Range
from smc.frontend.architectures.registry import GGUF, gguf_family
from smc.frontend.architectures.views import rows_of
from smc.frontend.checkpoint import Checkpoint, Coded, StoredTensor
from smc.frontend.config import CONTEXT, FACTOR, THETA, Config
from smc.frontend.gguf_codes import BLOCK_TYPES
from smc.frontend.gguf_file import GGUFFile, GGUFTensor, read_gguf
from smc.frontend.gguf_tokenizer import build_tokenizer, special_tokens
from smc.generation import GenerationDefaults
from smc.ir import BF16, F16, F32

if TYPE_CHECKING:
    from torch import Tensor

ENCODINGS = {"F16": F16, "BF16": BF16}
"""All other types are decoded to f32: scale times code plus minimum fits neither f16 nor bf16 exactly."""

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's name of a module → the checkpoint's, for most families; names of layers without the layer."""

METADATA = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
}
"""Key of the metadata → key of config.json, for most families."""

PARTS = Range(0, 1 << 16, "a number of parts")
"""0 in files that llama-gguf-split has merged."""

PAIRED = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


def open_gguf(path: Path) -> Checkpoint:
    """The checkpoint in a GGUF file; its weights are decoded later, tensor by tensor.

    InputError if the file is broken, one part of several, or of an architecture that is not supported.
    """
    file = read_gguf(path)
    metadata = Config(file.metadata, str(path))
    family, gguf = gguf_family(metadata)
    parts = metadata.integer("split.count", 1, PARTS)
    if parts > 1:
        raise InputError(f"{path} is one of {parts} parts: join them with llama-gguf-split --merge")
    if metadata.values.get(f"{gguf.prefix}.expert_count") and not gguf.has_experts:
        raise InputError(f"{path}: mixtures of experts of the architecture {gguf.prefix} are not supported")
    reader = _Reader(file, metadata, gguf)
    config = reader.config(family.name)
    return Checkpoint(
        name=path.stem,
        format=f"GGUF with {', '.join(sorted({tensor.type.name for tensor in file.tensors.values()}))}",
        config=config,
        tensors=dict(reader.stored(t, config) for t in file.tensors.values() if t.name not in ROPE_TENSORS),
        applied=gguf.applied,
        tokenizer=build_tokenizer(metadata),
        chat_template=metadata.text("tokenizer.chat_template", "") or None,
        special_tokens=special_tokens(metadata),
        generation=_generation(metadata),
    )


@dataclass(frozen=True)
class _Reader:
    """A file, with the keys of a family's config.json and its names of tensors."""

    file: GGUFFile
    metadata: Config
    gguf: GGUF

    def config(self, architecture: str) -> Config:
        """The metadata as a config.json."""
        metadata, tensors = self.metadata, self.file.tensors
        layers = metadata.integer(self._key("block_count"))
        hidden_size, heads = (metadata.integer(self._key(k)) for k in ("embedding_length", "attention.head_count"))
        head_dim = metadata.integer(self._key("attention.key_length"), hidden_size // heads or 1)
        if metadata.integer(self._key("attention.value_length"), head_dim) != head_dim:
            raise InputError(
                f"{self.file.path}: {self._key('attention.value_length')} {self._value('attention.value_length')} "
                f"differs from the head_dim {head_dim}, not supported"
            )
        context = metadata.integer(self._key("context_length"), within=CONTEXT)
        values = {
            "architectures": [architecture],
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self._kv_heads(heads, layers),
            "head_dim": head_dim,
            "intermediate_size": metadata.integers(self._key("feed_forward_length"), layers),
            "vocab_size": self._vocab_size(),
            "max_position_embeddings": context,
            "rope_parameters": self._rope(head_dim, context),
            "sliding_window": self._value("attention.sliding_window") or None,
            "attention_bias": "blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in tensors,
            "tie_word_embeddings": "output.weight" not in tensors,
            **self.gguf.config,
        }
        renamed = {**METADATA, **self.gguf.metadata}
        values.update((name, self._value(key)) for key, name in renamed.items() if self._value(key) is not None)
        return Config(values, metadata.origin)

    @cached_property
    def _keeps_codes(self) -> bool:
        """Whether most weights have types that an encoding represents: otherwise floats would outweigh the codes."""
        exact = {*BLOCK_TYPES, "F32", "F16", "BF16"}
        sizes = [(math.prod(t.shape), t.type.name in exact) for t in self.file.tensors.values()]
        return 2 * sum(size for size, is_exact in sizes if is_exact) > sum(size for size, _ in sizes)

    def _key(self, name: str) -> str:
        return f"{self.gguf.prefix}.{name}"

    def _value(self, name: str) -> Any:
        return self.metadata.values.get(self._key(name))

    def _kv_heads(self, heads: int, layers: int) -> int:
        if self._value("attention.head_count_kv") is None:
            return heads
        found = self.metadata.integers(self._key("attention.head_count_kv"), layers)
        if not isinstance(found, list):
            return found
        if len(set(found)) > 1:
            raise InputError(f"{self.file.path}: layers with different numbers of key-value heads are not supported")
        return found[0]

    def _vocab_size(self) -> int:
        """The declared size; old files do not declare one, so there the rows of the embedding."""
        embedding = self.file.tensors.get("token_embd.weight")
        return self.metadata.integer(self._key("vocab_size"), embedding.shape[0] if embedding else None)

    def _rope(self, head_dim: int, context: int) -> dict[str, Any]:
        """The rotary embedding as `rope_parameters`."""
        metadata = self.metadata
        width = metadata.integer(self._key("rope.dimension_count"), head_dim)
        found: dict[str, Any] = {
            "rope_theta": metadata.number(self._key("rope.freq_base"), 10000.0, THETA),
            "partial_rotary_factor": width / head_dim,
        }
        divisors, long, short = (self._divisors(name) for name in ROPE_TENSORS)
        kind = metadata.text(self._key("rope.scaling.type"), "linear")
        linear = metadata.number(self._key("rope.scale_linear"), 1.0, FACTOR)
        factor = metadata.number(self._key("rope.scaling.factor"), linear, FACTOR)
        original = metadata.integer(self._key("rope.scaling.original_context_length"), context, CONTEXT)
        magnitude = self._value("rope.scaling.attn_factor")
        stretched = {"original_max_position_embeddings": original, "attention_factor": magnitude}
        if long is not None and short is not None:
            return {**found, **stretched, "rope_type": "longrope", "long_factor": long, "short_factor": short}
        if divisors is not None:
            return {**found, "rope_type": "divided", "divisors": divisors}
        if kind == "none" or (kind == "linear" and factor == 1):
            return {**found, "rope_type": "default"}
        if kind == "yarn":
            return {**found, **stretched, "rope_type": kind, "factor": factor, **self._yarn(factor)}
        return {**found, "rope_type": kind, "factor": factor}

    def _yarn(self, factor: float) -> dict[str, Any]:
        """What only YaRN has. The converter writes `yarn_attn_factor` for a config's own `attention_factor`; the older
        `attn_factor` multiplies the usual one."""
        metadata = self.metadata
        usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        magnitude = usual * metadata.number(self._key("rope.scaling.attn_factor"), 1.0)
        if metadata.number(self._key("rope.scaling.yarn_ext_factor"), 1.0) != 1:
            raise metadata.fault(self._key("rope.scaling.yarn_ext_factor"), "1, others are not supported")
        return {
            "attention_factor": metadata.number(self._key("rope.scaling.yarn_attn_factor"), magnitude),
            "beta_fast": self._value("rope.scaling.yarn_beta_fast"),
            "beta_slow": self._value("rope.scaling.yarn_beta_slow"),
        }

    def _divisors(self, name: str) -> list[float] | None:
        tensor = self.file.tensors.get(name)
        return None if tensor is None else [float(d) for d in self.file.bytes_of(tensor).view(np.float32)]

    def stored(self, tensor: GGUFTensor, config: Config) -> tuple[str, StoredTensor]:
        """A tensor under its Hugging Face name, with the rows of q and k in Hugging Face's order."""
        block = BLOCK.fullmatch(tensor.name)
        stem, _, kind = (block[2] if block else tensor.name).rpartition(".")
        names, name = {**NAMES, **self.gguf.tensors}, tensor.name
        if stem in names:
            name = f"{self.gguf.layer.format(block[1]) if block else ''}{names[stem]}.{kind}"
        heads = None
        if self.gguf.paired_rows and stem in PAIRED:
            heads = config.integer(PAIRED[stem])
        encoding = ENCODINGS.get(tensor.type.name, F32)
        read = partial(_read, self.file, tensor, heads)
        coded = _coded(self.file, tensor, heads) if self._keeps_codes else None
        return name, StoredTensor(name, tensor.shape, encoding, read, str(self.file.path), coded)


def _coded(file: GGUFFile, tensor: GGUFTensor, heads: int | None) -> Coded | None:
    """The tensor's codes, if an encoding represents its type."""
    kind = BLOCK_TYPES.get(tensor.type.name)
    if kind is None or len(tensor.shape) < 2:
        return None
    coded = Coded(kind.encoding, lambda: kind.decode(file.bytes_of(tensor), tensor.shape))
    return coded if heads is None else rows_of(coded, None, partial(half_split, heads=heads))


def _read(file: GGUFFile, tensor: GGUFTensor, heads: int | None) -> Tensor:
    """Decode one tensor: f16 and bf16 as they are, everything else to f32."""
    import torch
    from gguf.quants import dequantize

    raw = file.bytes_of(tensor)
    if tensor.type.name == "F32":
        values = torch.from_numpy(raw.view(np.float32))
    elif tensor.type.name == "F16":
        values = torch.from_numpy(raw.view(np.float16))
    elif tensor.type.name == "BF16":
        values = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    else:
        rows = raw.reshape(*tensor.shape[:-1], -1)
        values = torch.from_numpy(np.ascontiguousarray(dequantize(rows, tensor.type), dtype=np.float32))
    values = values.reshape(tensor.shape)
    return values if heads is None else half_split(values, heads)


def half_split(values: Tensor, heads: int) -> Tensor:
    """Reorder the rows of q or k, [heads · head_dim, …], from adjacent rotary pairs to those (i, i + head_dim/2) apart.

    GGUF stores Llama's q and k for adjacent pairs; the ir, like Hugging Face, rotates half-split ones.
    """
    paired = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return paired.transpose(1, 2).reshape(values.shape)


def _generation(metadata: Config) -> GenerationDefaults:
    """Token ids, and every id that ends a text (end of text, of turn, of message)."""
    ids = {
        name: metadata.token_ids(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "padding", "eos", "eot", "eom")
    }
    return GenerationDefaults(
        eos_token_ids=tuple(dict.fromkeys(ids["eos"] + ids["eot"] + ids["eom"])),
        bos_token_id=ids["bos"][0] if ids["bos"] else None,
        pad_token_id=ids["padding"][0] if ids["padding"] else None,
    )
