"""linear: inputs times a matrix, plus a bias, plus a residual."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from smc.codegen.kernels.abi import ACCUMULATE, F32_FORM, HAS_BIAS, Form, form_for
from smc.codegen.kernels.specs import ElementwiseKernel, LinearKernel, TransformKernel
from smc.codegen.ops.registry import Lowering, lowers
from smc.codegen.plan.arguments import (
    Activation,
    Argument,
    Buffer,
    Null,
    Number,
    PrefetchDistance,
    Stride,
    TokenCount,
    Vector,
    Weight,
    WeightSize,
)
from smc.codegen.plan.domains import Columns, Rows
from smc.codegen.plan.lowering import FunctionLowering, tokens
from smc.codegen.plan.plan import BySlot
from smc.codegen.plan.work import NO_WORK, CallSizes, Work, padded_width
from smc.ir import Node, Parameter


@lowers("linear")
class Linear(Lowering):
    """A kernel per encoding of the matrix; a residual is added in place, if nothing reads it later."""

    def input_forms(self, node: Node, parameter: Callable[[str], Parameter]) -> Mapping[int, Form]:
        """The matrix's encoding says how its input is rounded, and whether columns are moved or rotated."""
        return {0: form_for(parameter(node.inputs[1]).encoding)}

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """The input in its form, what is to be added in its place, and the product."""
        matrix = node.inputs[1]
        bias = node.inputs[2] if node.attributes["bias"] else None
        source, form = in_its_form(f, node)
        if node.attributes["residual"]:
            out = _residual(f, node, source)
            f.alias(node.name, out)
        else:
            out = f.new_buffer(node.name, node.tensor.shape[1])
        flags = (HAS_BIAS if bias else 0) | (ACCUMULATE if node.attributes["residual"] else 0)
        arguments: dict[str, Argument] = {
            **product_arguments(source, form, matrix),
            "bias": Vector(bias) if bias else Null(),
            "out": Activation(out),
            "tokens": TokenCount(),
            "columns": WeightSize(matrix, "columns"),
            "x_stride": Stride(source),
            "out_stride": WeightSize(matrix, "rows"),
            "flags": Number(flags),
            "prefetch_distance": PrefetchDistance(),
        }
        f.add(
            node.name,
            "linear",
            BySlot(LinearKernel, matrix, form.kind),
            Rows(matrix),
            arguments,
            reads=(source, out) if node.attributes["residual"] else (source,),
            writes=(out,),
            slots=(matrix, bias) if bias else (matrix,),
            work=lambda sizes: sizes.multiplied(matrix, form) + (sizes.vector(bias) if bias else NO_WORK),
        )


def product_arguments(source: Buffer, form: Form, matrix: str) -> dict[str, Argument]:
    """What a linear kernel multiplies: inputs in their form, and the parts of a matrix."""
    codes = form != F32_FORM
    return {
        "x": Activation(source),
        "x_scales": Activation(source, "scales") if codes else Null(),
        "x_sums": Activation(source, "sums") if codes else Null(),
        "codes": Weight(matrix, "codes"),
        "scales": Weight(matrix, "scales"),
        "zeros": Weight(matrix, "zeros"),
    }


def in_its_form(f: FunctionLowering, node: Node) -> tuple[Buffer, Form]:
    """A node's input as its matrix reads it, and in which form that is."""
    value, form = node.inputs[0], f.forms[node.name, 0]
    if form.needs_transform:
        value, form = _transformed(f, node, form), replace(form, permuted=False, rotation=None)
    return f.in_form(value, form), form


def _transformed(f: FunctionLowering, node: Node, form: Form) -> str:
    """The name of a linear's input in the order and the basis of its matrix, in floats."""
    source, matrix = f.buffer(node.inputs[0]), node.inputs[1]
    out = f.new_buffer(f"{node.name}_input", source.width, routing=source.routing)

    def work(sizes: CallSizes) -> Work:
        columns = sizes.parameter(matrix).shape[-1]
        return Work(weight_bytes=4 * padded_width(columns) * form.permuted)

    f.add(
        node.name,
        "transform",
        TransformKernel(form.permuted, form.rotation),
        tokens(source),
        {
            "x": Activation(source),
            "order": Weight(matrix, "order"),
            "out": Activation(out),
            "columns": WeightSize(matrix, "columns"),
            "stride": Stride(source),
        },
        reads=(source,),
        writes=(out,),
        slots=(matrix,),
        work=work,
    )
    return out.value


def _residual(f: FunctionLowering, node: Node, source: Buffer) -> Buffer:
    """Where the residual lies and may be written: its own buffer, or a copy where others still read that."""
    value = node.inputs[-1]
    residual = f.buffer(value)
    later = [u for u in f.function.users(value) if u.name != node.name and u.name not in f.lowered]
    if not later and value not in f.function.outputs and residual is not source:
        return residual
    copy = Buffer(f"{node.name}_residual", residual.width)
    f.add(
        node.name,
        "copy",
        ElementwiseKernel("copy", (F32_FORM,)),
        Columns(copy),
        {"a": Activation(residual), "out": Activation(copy), "tokens": TokenCount(), "stride": Stride(copy)},
        reads=(residual,),
        writes=(copy,),
    )
    return copy
