"""Qwen 3 (Yang et al., "Qwen3 Technical Report", 2025): no biases, q and k normed head by head before rotation."""

from __future__ import annotations

from smc.frontend.architectures import parts, qwen2
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint

HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


@architecture("Qwen3ForCausalLM", model_type="qwen3", gguf=GGUF("qwen3", tensors=HEAD_NORMS))
def qwen3(checkpoint: Checkpoint) -> Decoder:
    """Heads have 128 channels for any hidden size, unless the config says otherwise."""
    config = checkpoint.config
    heads = parts.Heads.of(config, default_kv_heads=32, default_head_dim=128)
    bias = config.flag("attention_bias", False)
    return qwen2.decoder(checkpoint, heads, bias=bias, output_bias=bias, head_norms=True)
