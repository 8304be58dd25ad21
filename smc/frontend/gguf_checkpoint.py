"""GGUF files of the Llama family as checkpoints: metadata → config, tensors under their Hugging Face names."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smc.errors import InputError
from smc.fields import Range
from smc.frontend.checkpoint import Checkpoint, StoredTensor
from smc.frontend.config import CONTEXT, FACTOR, THETA, Config
from smc.frontend.gguf_file import GGUFFile, GGUFTensor, read_gguf
from smc.frontend.gguf_tokenizer import build_tokenizer, special_tokens
from smc.generation import GenerationDefaults
from smc.ir import BF16, F16, F32, RopeScaling, inverse_frequencies

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
PARTS = Range(0, 1 << 16, "a number of parts")
"""0 in files that llama-gguf-split has merged."""

ROPE_FACTORS = "rope_freqs.weight"
BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


def open_gguf(path: Path) -> Checkpoint:
    """The checkpoint in a GGUF file; its weights are decoded later, tensor by tensor.

    InputError where the file is broken, one part of several, or of another architecture than llama.
    """
    file = read_gguf(path)
    metadata = Config(file.metadata, str(path))
    architecture = metadata.text("general.architecture")
    if architecture != "llama":
        raise InputError(f"{path}: GGUF files of the architecture {architecture} are not supported (llama is)")
    parts = metadata.integer("split.count", 1, PARTS)
    if parts > 1:
        raise InputError(f"{path} is one of {parts} parts: join them with llama-gguf-split --merge")
    if metadata.values.get("llama.expert_count"):
        raise InputError(f"{path}: mixtures of experts are not supported")
    config = _config(file, metadata)
    return Checkpoint(
        name=path.stem,
        format=f"GGUF with {', '.join(sorted({tensor.type.name for tensor in file.tensors.values()}))}",
        config=config,
        tensors=dict(_stored(file, tensor, config) for tensor in file.tensors.values() if tensor.name != ROPE_FACTORS),
        tokenizer=build_tokenizer(metadata),
        chat_template=metadata.text("tokenizer.chat_template", "") or None,
        special_tokens=special_tokens(metadata),
        generation=_generation(metadata),
    )


def _config(file: GGUFFile, metadata: Config) -> Config:
    """The metadata in the terms of a config.json."""
    path, layers = file.path, metadata.integer("llama.block_count")
    hidden_size, heads = metadata.integer("llama.embedding_length"), metadata.integer("llama.attention.head_count")
    head_dim = metadata.integer("llama.attention.key_length", hidden_size // heads or 1)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if metadata.integer(key, head_dim) != head_dim:
            raise InputError(
                f"{path}: {key} {metadata.values[key]} differs from the head_dim {head_dim}, not supported"
            )
    kv_heads: int | list[int] = heads
    if metadata.values.get("llama.attention.head_count_kv") is not None:
        kv_heads = metadata.integers("llama.attention.head_count_kv", layers)
    if isinstance(kv_heads, list):
        if len(set(kv_heads)) > 1:
            raise InputError(f"{path}: layers with different numbers of key-value heads are not supported")
        kv_heads = kv_heads[0]
    window = metadata.values.get("llama.attention.sliding_window") or None
    values = {
        "architectures": ["MistralForCausalLM" if window else "LlamaForCausalLM"],
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": metadata.integers("llama.feed_forward_length", layers),
        "vocab_size": _vocab_size(file, metadata),
        "max_position_embeddings": metadata.integer("llama.context_length", within=CONTEXT),
        "rms_norm_eps": metadata.number("llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file, metadata, head_dim),
        "sliding_window": window,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    return Config(values, metadata.origin)


def _vocab_size(file: GGUFFile, metadata: Config) -> int:
    """As declared; old files do not, there the embedding tells."""
    embedding = file.tensors.get("token_embd.weight")
    return metadata.integer("llama.vocab_size", embedding.shape[0] if embedding else None)


def _rope(file: GGUFFile, metadata: Config, head_dim: int) -> dict[str, Any]:
    """The rotary embedding as `rope_parameters`."""
    theta = metadata.number("llama.rope.freq_base", 10000.0, THETA)
    kind = metadata.text("llama.rope.scaling.type", "none")
    if ROPE_FACTORS in file.tensors:
        return {"rope_theta": theta, **_llama3_scaling(file, head_dim, theta)}
    linear = metadata.number("llama.rope.scale_linear", 1.0, FACTOR)
    factor = metadata.number("llama.rope.scaling.factor", linear, FACTOR)
    if kind == "none" and "llama.rope.scale_linear" not in metadata.values:
        return {"rope_theta": theta, "rope_type": "default"}
    return {"rope_theta": theta, "rope_type": "linear" if kind == "none" else kind, "factor": factor}


def _llama3_scaling(file: GGUFFile, head_dim: int, theta: float) -> dict[str, Any]:
    """GGUF keeps llama3 scaling as a divisor for every frequency; find the parameters that make these divisors.

    All published models use low and high factors of 1 and 4 on 8192 tokens; the factor is the largest divisor.
    """
    divisors = file.bytes_of(file.tensors[ROPE_FACTORS]).view(np.float32)
    factor = float(divisors.max())
    scaling = RopeScaling("llama3", factor, 1.0, 4.0, 8192)
    expected = inverse_frequencies(head_dim, theta) / inverse_frequencies(head_dim, theta, scaling)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise InputError(f"{file.path}: the divisors in {ROPE_FACTORS} are no rotary scaling that we know")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }


def _stored(file: GGUFFile, tensor: GGUFTensor, config: Config) -> tuple[str, StoredTensor]:
    """A tensor under its Hugging Face name, with its rows in Hugging Face's order."""
    block = BLOCK.fullmatch(tensor.name)
    stem, _, kind = (block[2] if block else tensor.name).rpartition(".")
    name = tensor.name
    if stem in NAMES:
        name = f"{f'model.layers.{block[1]}.' if block else ''}{NAMES[stem]}.{kind}"
    heads = {"attn_q": config.integer("num_attention_heads"), "attn_k": config.integer("num_key_value_heads")}.get(stem)
    encoding = ENCODINGS.get(tensor.type.name, F32)
    read = partial(_read, file, tensor, heads)
    return name, StoredTensor(name, tensor.shape, encoding, read, str(file.path))


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
