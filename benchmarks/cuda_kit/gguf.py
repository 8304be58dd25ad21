"""A GGUF file of a Llama model, with the same random blocks of Q4_0 everywhere, for llama-bench.

It is made where llama-bench runs, so this needs Python's own library alone.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

F32, Q4_0 = 0, 2
ALIGNMENT = 32
STAMP_BLOCKS = 1 << 14
"""Blocks of 32 weights that repeat."""


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: object) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", 8) + _text(value)
    kind, form = (6, "f") if isinstance(value, float) else (4, "I")
    return _text(key) + struct.pack(f"<I{form}", kind, value)


def _tensors(config: dict) -> dict[str, tuple[int, ...]]:
    """Names of llama.cpp to shapes, columns first."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, key = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, query),
        "attn_k": (hidden, key),
        "attn_v": (hidden, key),
        "attn_output": (query, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate": (hidden, inner),
        "ffn_up": (hidden, inner),
        "ffn_down": (inner, hidden),
    }
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (hidden, vocabulary), "output_norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        found["output.weight"] = (hidden, vocabulary)
    for number in range(config["num_hidden_layers"]):
        found.update({f"blk.{number}.{name}.weight": shape for name, shape in layer.items()})
    return found


def _bytes_of(shape: tuple[int, ...]) -> int:
    return 4 * shape[0] if len(shape) == 1 else shape[0] * shape[1] // 32 * 18


def write_gguf(path: Path, config: dict) -> None:
    """The file for a configuration in transformers' words ("GGUF", version 3); it has no vocabulary."""
    values = {
        "general.architecture": "llama",
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.vocab_size": config["vocab_size"],
        "tokenizer.ggml.model": "no_vocab",
    }
    tensors = _tensors(config)
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))
    header += b"".join(_value(key, value) for key, value in values.items())
    place = 0
    for name, shape in tensors.items():
        kind = F32 if len(shape) == 1 else Q4_0
        header += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, place)
        place += -(-_bytes_of(shape) // ALIGNMENT) * ALIGNMENT
    blocks = random.Random(1)
    scale = struct.pack("<e", 0.02)
    stamp = b"".join(scale + blocks.getrandbits(128).to_bytes(16, "little") for _ in range(STAMP_BLOCKS))
    with open(path, "wb") as out:
        out.write(header + bytes(-len(header) % ALIGNMENT))
        for shape in tensors.values():
            size = _bytes_of(shape)
            data = struct.pack("<f", 1.0) if len(shape) == 1 else stamp
            for begin in range(0, size, len(data)):
                out.write(data[: size - begin])
            out.write(bytes(-size % ALIGNMENT))
