"""Spec → kernel: which builder makes a kernel of each type, for the levels of CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smc.codegen.cpu.builder import Kernel
from smc.codegen.cpu.kernels.attention import attention_kernel, merge_kernel
from smc.codegen.cpu.kernels.embedding import embedding_kernel
from smc.codegen.cpu.kernels.kv_cache import rope_cache_kernel
from smc.codegen.cpu.kernels.linear import linear_kernel
from smc.codegen.cpu.kernels.rows import chained_kernel, elementwise_kernel, quantize_tokens_kernel, rms_norm_kernel
from smc.codegen.cpu.kernels.transform import transform_kernel
from smc.codegen.kernels.specs import (
    AttentionKernel,
    ElementwiseKernel,
    EmbeddingKernel,
    KernelSpec,
    LinearKernel,
    MergeKernel,
    QuantizeTokensKernel,
    RmsNormKernel,
    RopeKernel,
    TransformKernel,
)
from smc.targets import Level


def _elementwise(symbol: str, spec: ElementwiseKernel, level: Level) -> Kernel:
    return (chained_kernel if spec.chained else elementwise_kernel)(symbol, spec.op, spec.forms, level)


BUILDERS: dict[type, Callable[[str, Any, Level], Kernel]] = {
    LinearKernel: lambda symbol, spec, level: linear_kernel(symbol, spec.encoding, level, spec.tile, spec.top),
    EmbeddingKernel: lambda symbol, spec, level: embedding_kernel(symbol, spec.encoding, level.family),
    RmsNormKernel: lambda symbol, spec, level: rms_norm_kernel(symbol, spec.forms, level),
    ElementwiseKernel: _elementwise,
    QuantizeTokensKernel: lambda symbol, spec, level: quantize_tokens_kernel(symbol, spec.form, level),
    TransformKernel: lambda symbol, spec, level: transform_kernel(symbol, spec.permuted, spec.rotation),
    RopeKernel: lambda symbol, spec, level: rope_cache_kernel(symbol, spec.shape, level),
    AttentionKernel: lambda symbol, spec, level: attention_kernel(symbol, spec.shape, level),
    MergeKernel: lambda symbol, spec, level: merge_kernel(symbol, spec.shape),
}
"""By the type of spec: (symbol, spec, level) → kernel."""


def build_kernel(spec: KernelSpec, symbol: str, level: Level) -> Kernel:
    """The kernel that a spec describes, as the C function `symbol` for a level."""
    return BUILDERS[type(spec)](symbol, spec, level)
