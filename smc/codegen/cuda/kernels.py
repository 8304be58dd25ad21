"""Spec → CUDA C++: a function with the spec's signature, which calls the templates of device/ block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from smc.codegen.c_literals import c_float
from smc.codegen.cuda.encodings import encoding_struct
from smc.codegen.cuda.formulas import elementwise_lines
from smc.codegen.kernels.abi import AttentionShape, Form
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
    operands,
)
from smc.errors import InputError
from smc.ir import Encoding, ceil_div

_CACHE_DTYPES = {"f16": 0, "f32": 1, "i8": 2}


def kernel_function(spec: KernelSpec) -> list[str]:
    """The function of a kernel, called by all threads of a block."""
    if type(spec) not in _BODIES:
        raise InputError(f"there is no kernel {spec.name()} for GPUs yet: compile for a CPU, with --target native")
    return [f"SMC_KERNEL void kernel_{spec.name()}({spec.signature()}) {{", *_BODIES[type(spec)](spec), "}", ""]


def kernel_structs(specs: Sequence[KernelSpec]) -> list[str]:
    """The structs of constants that the functions of these kernels need, each once."""
    encodings = dict.fromkeys(s.encoding for s in specs if isinstance(s, LinearKernel | EmbeddingKernel))
    lines = [line for encoding in encodings for line in encoding_struct(encoding_name(encoding), encoding)]
    attending = (s.shape for s in specs if isinstance(s, AttentionKernel | RopeKernel | MergeKernel))
    return [*lines, *(line for shape in dict.fromkeys(attending) for line in _shape_struct(shape))]


def choice_function(name: str, specs: Sequence[KernelSpec]) -> list[str]:
    """A function that calls one of several kernels with the same parameters, chosen by number."""
    [signature] = {spec.signature() for spec in specs}
    arguments = signature.arguments({p.name: p.name for p in signature.parameters})
    cases = [f"  case {i}: kernel_{spec.name()}({arguments}); break;" for i, spec in enumerate(specs)]
    head = f"SMC_DEVICE void kernel_{name}(int32_t kernel, {signature}) {{"
    return [head, "  switch (kernel) {", *cases, "  }", "}", ""]


# ---- linears and embeddings


def encoding_name(encoding: Encoding) -> str:
    """The struct of an encoding's constants."""
    return "E_" + EmbeddingKernel(encoding).name().removeprefix("embedding_")


def _linear(spec: LinearKernel) -> list[str]:
    encoding, struct = spec.encoding, encoding_name(spec.encoding)
    rows = "(out_stride + 31) / 32 * 32" if spec.argmax else "out_stride"
    output = "smc_argmax_output" if spec.argmax else "smc_output"
    lines = [
        f"  const {output} output = {{bias, out, out_stride, flags}};",
        f"  const smc_matrix m = {{codes, scales, zeros, {rows}, (columns + 31) / 32}};",
        "  uint8_t *memory = smc_shared_memory() + SMC_SCRATCH;",
    ]
    common = "output, tokens"
    if encoding.is_float:
        function, arguments = "smc_multiply_float_weights", f"x, codes, {common}, columns, x_stride, begin, end, memory"
    elif encoding.rounds_inputs:
        function, arguments = "smc_multiply_integers", f"x, x_scales, x_sums, m, {common}, x_stride, begin, end, memory"
        lines.append(f"  if (tokens > SMC_MANY_TOKENS) return smc_multiply_on_tensor_cores<{struct}>({arguments});")
    else:
        function, arguments = "smc_multiply_floats", f"x, m, {common}, x_stride, begin, end, memory"
    return [
        *lines,
        f"  if (tokens == 1) {function}<{struct}, 1>({arguments});",
        f"  else {function}<{struct}, 8>({arguments});",
    ]


def _embedding(spec: EmbeddingKernel) -> list[str]:
    arguments = "tokens, codes, scales, zeros, out, rows, columns, stride, scale, token"
    return [_loop("token"), f"    smc_embed<{encoding_name(spec.encoding)}>({arguments});"]


# ---- rows


def _loop(variable: str) -> str:
    return f"  for (int32_t {variable} = begin; {variable} < end; {variable}++)"


def _group(form: Form) -> int:
    """Tiles that share a scale, 0: a whole row."""
    return 0 if form.group == "token" else form.group // 32


def _stores(forms: Sequence[Form], token: str) -> list[str]:
    """`row` in every form, by all threads of a block."""
    lines = []
    for place, form in enumerate(forms):
        if form.is_float:
            lines.append(f"    smc_store_floats(row, out + (int64_t){token} * stride, stride);")
            continue
        group = _group(form)
        targets = (
            f"codes_{place} + (int64_t){token} * stride",
            f"scales_{place} + smc_scale_place<{group}>({token}, stride)",
            f"sums_{place} + (int64_t){token} * (stride / {form.sum_group})",
        )
        lines.append(f"    smc_store_codes<{group}, {form.sum_group}>({_row(form)}, {', '.join(targets)}, stride);")
    return lines


def _row(form: Form) -> str:
    """`row` as it is rounded."""
    if form.rotation is None:
        return "row"
    return f"smc_turned(row, {c_float(float(np.float32(form.rotation**-0.5)))})"


def _rms_norm(spec: RmsNormKernel) -> list[str]:
    start = "(int64_t)token * stride"
    residual = f"residual + {start}" if spec.residual else "0"
    row = f"    const smc_normed_row row = smc_rms_norm(x + {start}, weight, {residual}, width, stride, eps);"
    return [_loop("token") + " {", row, *_stores(spec.forms, "token"), "  }"]


def _layer_norm(spec: LayerNormKernel) -> list[str]:
    bias = "bias" if spec.bias else "0"
    call = f"smc_layer_norm(x + (int64_t)token * stride, weight, {bias}, width, stride, eps)"
    row = f"    const smc_centered_row row = {call};"
    return [_loop("token") + " {", row, *_stores(spec.forms, "token"), "  }"]


def _head_layer_norm(spec: HeadLayerNormKernel) -> list[str]:
    start = "(int64_t)token * stride"
    call = f"smc_head_layer_norm(x + {start}, weight, out + {start}, heads, {spec.head_dim}, stride, eps)"
    return [_loop("token"), f"    {call};"]


def _quantize(spec: QuantizeTokensKernel) -> list[str]:
    lines = [
        "    const float *values = x + (int64_t)token * stride;",
        "    const auto row = [=](int32_t column) { return values[column]; };",
    ]
    return [_loop("token") + " {", *lines, *_stores([spec.form], "token"), "  }"]


def _elementwise(spec: ElementwiseKernel) -> list[str]:
    assert not spec.chained, "GPUs have no chains"
    names = operands(spec.op)
    loads = [f"      const float {name}_ = {name}[start + column];" for name in names]
    body = elementwise_lines(spec.op, names, spec.numbers)
    inner = ", ".join(f"float {name}" for name in [*names, *spec.numbers])
    given = ", ".join([*(f"{name}_" for name in names), *spec.numbers])
    lines = [
        "  const int32_t lane = smc_lane_of_block() & 31, tiles = stride / 32;",
        f"  const auto formula = [=]({inner}) {{ {' '.join(body)} }};",
        "  for (int32_t tile = begin + smc_lane_of_block() / 32; tile < end; tile += SMC_WARPS) {",
        "    const int64_t start = (int64_t)tile * 32;",
        "    const auto row = [=](int32_t column) {",
        *loads,
        f"      return formula({given});",
        "    };",
    ]
    for place, form in enumerate(spec.forms):
        if form.is_float:
            lines.append("    out[start + lane] = row(lane);")
            continue
        targets = f"codes_{place} + start, sums_{place} + (int64_t)tile * {32 // form.sum_group}"
        lines += [
            f"    const float scale_{place} = smc_store_group<{form.sum_group}>({_row(form)}, {targets}, 0, 1);",
            f"    if (lane == 0) scales_{place}[tile] = scale_{place};",
        ]
    return [*lines, "  (void)tiles, (void)tokens;", "  }"]


def _transform(spec: TransformKernel) -> list[str]:
    rotation = spec.rotation or 0
    root = c_float(float(np.float32(rotation**-0.5))) if rotation else "1.0f"
    start = "(int64_t)token * stride"
    call = f"smc_transform<{str(spec.permuted).lower()}, {rotation}>"
    return [_loop("token"), f"    {call}(x + {start}, order, out + {start}, columns, stride, {root});"]


# ---- experts


def _route(spec: RouteKernel) -> list[str]:
    facts = f"{spec.experts}, {spec.chosen}, {str(spec.normalized).lower()}"
    arguments = "logits, weights, groups, rows, places, tokens, stride, smc_shared_memory() + SMC_SCRATCH"
    return [_loop("block"), f"    smc_route<{facts}>({arguments});"]


def _dispatch(spec: DispatchKernel) -> list[str]:
    lines = [
        "    const float *values = x + (int64_t)rows[first + place] * stride;",
        "    const auto row = [=](int32_t column) { return values[column]; };",
    ]
    return [_loop("place") + " {", *lines, *_stores(spec.forms, "place"), "  }"]


def _combine(spec: CombineKernel) -> list[str]:
    arguments = f"x, weights, places, {'residual' if spec.residual else '0'}, out, weights_stride, stride, token"
    return [_loop("token"), f"    smc_combine<{spec.chosen}>({arguments});"]


# ---- attention


def _shape_struct(shape: AttentionShape) -> list[str]:
    facts: dict[str, int | bool] = {
        "HEADS": shape.heads,
        "KV_HEADS": shape.kv_heads,
        "GROUP": shape.group,
        "DIM": shape.head_dim,
        "PADDED": shape.padded_dim,
        "PAIRS": shape.pairs,
        "CACHE": _CACHE_DTYPES[shape.kv_dtype],
        "NORMED": shape.normed,
        "CAPPED": shape.capped,
        "PAGE_SCALES": shape.page_scales,
        "PAGE_HEAD": shape.page_head,
        "STATE": shape.state_floats,
    }
    values = ", ".join(f"{name} = {int(value)}" for name, value in facts.items())
    return [f"struct S_{shape} {{ enum {{ {values} }}; }};", ""]


def _rope_cache(spec: RopeKernel) -> list[str]:
    norm = "norm, eps" if spec.shape.normed else "0, 0.0f"
    arguments = f"k, v, rope, slots, tiles, cache, beyond, stride, page, layer, {norm}, block"
    return [_loop("block"), f"    smc_rope_cache<S_{spec.shape}>({arguments});"]


def _attention(spec: AttentionKernel) -> list[str]:
    norm = "norm, eps" if spec.shape.normed else "0, 0.0f"
    cap = "cap" if spec.shape.capped else "0.0f"
    pointers = "q, rope, cache, tables, tiles, out, partials"
    numbers = f"stride, page, layer, scale, window, splits, {norm}, {cap}, begin, end - begin"
    memory = "smc_shared_memory() + SMC_SCRATCH"
    return [f"  smc_attention<S_{spec.shape}>({pointers}, {numbers}, {memory});"]


def _merge(spec: MergeKernel) -> list[str]:
    arguments = "tiles, partials, out, stride, window, splits, block"
    return [_loop("block"), f"    smc_merge<S_{spec.shape}>({arguments});"]


_BODIES: dict[type, Callable[[Any], list[str]]] = {
    LinearKernel: _linear,
    EmbeddingKernel: _embedding,
    RmsNormKernel: _rms_norm,
    LayerNormKernel: _layer_norm,
    HeadLayerNormKernel: _head_layer_norm,
    ElementwiseKernel: _elementwise,
    QuantizeTokensKernel: _quantize,
    TransformKernel: _transform,
    RouteKernel: _route,
    DispatchKernel: _dispatch,
    CombineKernel: _combine,
    RopeKernel: _rope_cache,
    AttentionKernel: _attention,
    MergeKernel: _merge,
}
"""By the type of spec."""


def shared_bytes(specs: Sequence[KernelSpec]) -> int:
    """Shared memory that a block of threads needs for the kernels, at most."""
    return max([_room(spec) for spec in specs], default=0)


def _room(spec: KernelSpec) -> int:
    """The size of device/'s …_room structs, for 8 tokens."""
    if isinstance(spec, AttentionKernel):
        dim, rows = spec.shape.head_dim, 32
        few = 8 * (2 * dim + 256 + 16 + 1 + 2) + 256
        staged = max(16 * (256 + rows), 64 * (rows + 4) + 32 * 32 * (2 if dim > 128 else ceil_div(dim, 32)))
        return 4 * max(few, 36 + rows * (16 + 1 + 2 + 1 + 2 + 4) + 8 + staged)
    if isinstance(spec, RouteKernel):
        return 4 * 8 * spec.experts
    if not isinstance(spec, LinearKernel):
        return 0
    encoding, rows, tokens, together = spec.encoding, 8, 8, 32
    if encoding.is_float:
        return 4 * 64 * (rows + tokens)
    halves = 2 if encoding.scales.group == 16 else 1
    minima = together if encoding.stores_minima else 1
    size = together * halves * rows * (tokens + 1) + minima * halves * rows
    if not encoding.rounds_inputs:
        return 4 * (size + minima * halves * tokens)
    return max(4 * size, 2 * _stage(encoding, halves))


def _stage(encoding: Encoding, halves: int) -> int:
    """Bytes of a smc_stage, at most."""
    tiles, tokens = 4, 64
    codes = tiles * (32 * 32 * encoding.bits // 8 + halves * (1 + encoding.stores_minima) * 32 * 4)
    return codes + tokens * (tiles * 32 + 16) + 4 * tokens * tiles * (1 + halves)
