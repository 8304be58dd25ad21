"""Spec → kernel: which builder makes a kernel of each type, for the levels of CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smc.codegen.cpu.builder import Kernel
from smc.codegen.cpu.kernels.attention import attention_kernel, merge_kernel
from smc.codegen.cpu.kernels.embedding import embedding_kernel
from smc.codegen.cpu.kernels.experts import combine_kernel, dispatch_kernel, route_kernel
from smc.codegen.cpu.kernels.head_norm import head_layer_norm_kernel
from smc.codegen.cpu.kernels.kv_cache import rope_cache_kernel
from smc.codegen.cpu.kernels.linear import linear_kernel
from smc.codegen.cpu.kernels.norms import layer_norm_kernel, rms_norm_kernel
from smc.codegen.cpu.kernels.rows import elementwise_kernel, quantize_tokens_kernel
from smc.codegen.cpu.kernels.transform import transform_kernel
from smc.codegen.kernels.specs import (
    AttentionKernel,
    CombineKernel,
    DispatchKernel,
    ElementwiseKernel,
    EmbeddingKernel,
    HeadLayerNormKernel,
    KernelSpec,
    LayerNormKernel,
    LinearKernel,
    MergeKernel,
    QuantizeTokensKernel,
    RmsNormKernel,
    RopeKernel,
    RouteKernel,
    TransformKernel,
)
from smc.targets import CpuLevel

BUILDERS: dict[type, Callable[[str, Any, CpuLevel], Kernel]] = {
    LinearKernel: linear_kernel,
    EmbeddingKernel: embedding_kernel,
    RmsNormKernel: rms_norm_kernel,
    LayerNormKernel: layer_norm_kernel,
    HeadLayerNormKernel: head_layer_norm_kernel,
    ElementwiseKernel: elementwise_kernel,
    QuantizeTokensKernel: quantize_tokens_kernel,
    TransformKernel: transform_kernel,
    RouteKernel: route_kernel,
    DispatchKernel: dispatch_kernel,
    CombineKernel: combine_kernel,
    RopeKernel: rope_cache_kernel,
    AttentionKernel: attention_kernel,
    MergeKernel: merge_kernel,
}
"""By the type of spec: (C name, spec, level) → kernel."""


def build_kernel(spec: KernelSpec, symbol: str, level: CpuLevel) -> Kernel:
    """The kernel that a spec describes, as the C function `symbol` for a level."""
    return BUILDERS[type(spec)](symbol, spec, level)
