"""Lowerings: how each op of the ir becomes operations. One file per op, which registers itself; see registry.py."""

from smc.codegen.ops import (
    attention,
    elementwise,
    embedding,
    experts,
    hadamard,
    head_layer_norm,
    layer_norm,
    linear,
    rms_norm,
    rope,
)
from smc.codegen.ops.registry import LOWERINGS, Lowering, find_lowering

OPS = (attention, elementwise, embedding, experts, hadamard, head_layer_norm, layer_norm, linear, rms_norm, rope)
"""The files of this folder; importing them fills the registry."""

__all__ = ["LOWERINGS", "OPS", "Lowering", "find_lowering"]
