"""Mistral: Llama's block with sliding-window attention (Jiang et al., "Mistral 7B", 2023)."""

from __future__ import annotations

from smc.frontend.architectures import llama, parts
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint


@architecture(
    "MistralForCausalLM",
    model_type="mistral",
    gguf=GGUF("llama", needs="attention.sliding_window", paired_rows=True),
)
def mistral(checkpoint: Checkpoint) -> Decoder:
    """A missing key means the class's default (8 key-value heads, a window of 4096), null means as many key-value heads
    as heads, and no window."""
    config = checkpoint.config
    if "sliding_window" in config.values and config.values["sliding_window"] is None:
        window = None
    else:
        window = config.integer("sliding_window", 4096)
    kv_heads = None if "num_key_value_heads" in config.values else 8
    heads = parts.Heads.of(config, default_kv_heads=kv_heads)
    return llama.decoder(checkpoint, heads, default_context=32 * 4096, window=window)
