"""Calls of kernels as C expressions: which member of `struct kernels`, with which arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from smc.codegen.c_literals import c_float, c_identifier
from smc.codegen.host.kernel_table import kernel_member, top_kernel
from smc.codegen.kernels.abi import ACCUMULATE, COMPACT, F32_FORM, HAS_BIAS, Form
from smc.codegen.kernels.specs import AttentionKernel, ElementwiseKernel, RmsNormKernel, RopeKernel
from smc.codegen.memory import width_of
from smc.codegen.plan import WIDTH_MULTIPLE, Buffer, FunctionPlan, Plan, Task, rope_table

Call = tuple[str, list[str]]
"""A member of `struct kernels` and the arguments before begin and end."""


@dataclass(frozen=True)
class LinearArguments:
    """The arguments of a linear kernel before begin and end, in its order (cpu/kernels/linear.py)."""

    x: str
    x_scales: str
    x_sums: str
    codes: str
    scales: str
    zeros: str
    bias: str
    out: str
    tokens: str
    columns: str
    x_stride: str
    out_stride: str
    flags: str

    def expressions(self) -> list[str]:
        """All of them."""
        return [getattr(self, field.name) for field in fields(self)]


class FunctionCalls:
    """The calls that a function makes. In them stand its own variables (functions.py): N tokens, its call's places L in
    the weights W, the step S, the thread, its buffers, and the tiles of attention; for matmuls n tokens from t on."""

    def __init__(self, plan: Plan, function: FunctionPlan) -> None:
        self.plan, self.function = plan, function

    def call(self, task: Task, begin: str, end: str) -> str:
        """The kernel's call for some of its blocks (of element-wise work: tiles)."""
        kernel, arguments = self._call(task)
        return _expression(kernel, [*arguments, begin, end])

    def chained_call(self, task: Task, token: str, tokens: str, begin: str, end: str) -> str:
        """The call that ends a chain: for some tokens of what the chain's linears left, rows begin…end."""
        kernel, arguments = self._elementwise(task)
        return _expression(kernel, [*arguments, token, tokens, begin, end])

    def top_call(self, task: Task, begin: str, end: str) -> str | None:
        """The call that compares logits in the place of writing them, if the task makes what can be compared."""
        kernel = top_kernel(self.plan)
        if kernel is None or self.function is not self.plan.head or task.output is not self.function.result:
            return None
        tops = replace(
            self._linear_arguments(task),
            out="S->tops + thread->index * N",
            out_stride=str(self.plan.vocab_size),
        )
        return _expression(kernel_member(kernel), [*tops.expressions(), begin, end])

    def name(self, buffer: Buffer, form: Form = F32_FORM) -> str:
        """The C name of a buffer."""
        if buffer is self.function.result and self.function is self.plan.head:
            return "S->logits"
        if buffer is self.function.x and form.kind == "f32":
            return "X"
        if buffer is self.function.result and form.kind == "f32":
            return "Y"
        return c_identifier(buffer.value) + ("" if form.kind == "f32" else f"_{form}")

    def width(self, buffer: Buffer) -> str:
        """The padded width of a buffer."""
        if isinstance(buffer.width, str):
            return f"L->{buffer.width}"
        return str(width_of(self.plan, self.function, buffer.width))

    def row_count(self, task: Task) -> str:
        """How many tokens, or tiles of all tokens, a row kernel works on."""
        if task.blocks == "tokens":
            return "N"
        return f"N * ({self.width(task.output or task.inputs[0])} / {WIDTH_MULTIPLE})"

    def _call(self, task: Task) -> Call:
        calls = {
            "embedding": self._embedding,
            "rms_norm": self._rms_norm,
            "linear": self._linear,
            "rope_cache": self._rope_cache,
            "attention": self._attention,
            "merge": self._merge,
            "quantize": self._quantize,
            "transform": self._transform,
        }
        return calls.get(task.kind, self._elementwise)(task)

    def _outputs(self, buffer: Buffer, forms: Sequence[Form]) -> list[str]:
        arguments = []
        for form in forms:
            name = self.name(buffer, form)
            arguments += [name] if form.kind == "f32" else [name, f"{name}_scales", f"{name}_sums"]
        return arguments

    def _rows_from(self, buffer: Buffer, form: Form, token: str) -> tuple[str, str, str]:
        """A linear's arguments x, x_scales and x_sums: a buffer from a token on, if not 0 then a multiple of 8."""
        name, width = self.name(buffer, form), self.width(buffer)

        def place(per_token: str) -> str:
            return "" if token == "0" else f" + (size_t){token} * {per_token}"

        x = name + place(f"({width})")
        if form.kind == "f32":
            return x, "0", "0"
        scales = place("1" if form.group == "token" else f"({width} / {WIDTH_MULTIPLE})")
        return x, f"{name}_scales{scales}", f"{name}_sums{place(f'({width} / {form.sum_group})')}"

    def _linear_arguments(self, task: Task) -> LinearArguments:
        assert task.slot is not None and task.output is not None
        m, source = f"L->{c_identifier(task.slot)}", task.inputs[0]
        chained = task.output.chained
        x, x_scales, x_sums = self._rows_from(source, task.input_form, "t")
        flags = (HAS_BIAS if task.bias else 0) | (ACCUMULATE if task.accumulate else 0) | (COMPACT if chained else 0)
        return LinearArguments(
            x=x,
            x_scales=x_scales,
            x_sums=x_sums,
            codes=f"W + {m}.codes",
            scales=f"W + {m}.scales",
            zeros=f"W + {m}.zeros",
            bias=f"W + L->{c_identifier(task.bias)}" if task.bias else "0",
            out=self.name(task.output) + ("" if chained else f" + (size_t)t * {m}.rows"),
            tokens="n",
            columns=f"{m}.columns",
            x_stride=self.width(source),
            out_stride=f"{m}.rows",
            flags=str(flags),
        )

    def _linear(self, task: Task) -> Call:
        assert task.slot is not None
        return f"linear[L->{c_identifier(task.slot)}.kernel]", self._linear_arguments(task).expressions()

    def _embedding(self, task: Task) -> Call:
        assert task.slot is not None and task.output is not None
        m = f"L->{c_identifier(task.slot)}"
        width = self.width(task.output)
        place = [f"W + {m}.codes", f"W + {m}.scales", f"W + {m}.zeros"]
        kernel = f"embedding[{m}.kernel]"
        return kernel, ["S->tokens", *place, "Y", f"{m}.rows", f"{m}.columns", width]

    def _rms_norm(self, task: Task) -> Call:
        assert task.slot is not None and task.output is not None and isinstance(task.kernel, RmsNormKernel)
        arguments = [
            self.name(task.inputs[0]),
            f"W + L->{c_identifier(task.slot)}",
            *self._outputs(task.output, task.kernel.forms),
            "N",
            str(task.node.tensor.shape[1]),
            self.width(task.output),
            c_float(task.node.attributes["eps"]),
        ]
        return kernel_member(task.kernel), arguments

    def _rope_cache(self, task: Task) -> Call:
        assert isinstance(task.kernel, RopeKernel)
        key, value = task.inputs
        pages = self._pages(task)
        arguments = [
            self.name(key),
            self.name(value),
            self._rope_rows(task),
            f"{pages}.slots",
            "S->tiles",
            f"{pages}.data",
            f"{pages}.data",
            self.width(key),
            f"(int64_t){pages}.page_bytes",
            "L->cache",
        ]
        return f"{kernel_member(task.kernel)}[S->kv_dtype]", arguments

    def _rope_rows(self, task: Task) -> str:
        """The cosines and sines of the step's tokens in the table of an attention."""
        q = self.function.function.node(task.node.inputs[0])
        tables = self.plan.rope_tables
        before = sum(t.head_dim for t in tables[: tables.index(rope_table(q))]) if q.op == "rope" else 0
        return f"S->rope + (size_t)N * {before}" if before else "S->rope"

    def _pages(self, task: Task) -> str:
        """The pages of the K and V of an attention."""
        return f"S->kv[{self.plan.kv_group(task)}]"

    def _attention(self, task: Task) -> Call:
        assert isinstance(task.kernel, AttentionKernel) and task.output is not None
        pages = self._pages(task)
        arguments = [
            self.name(task.inputs[0]),
            self._rope_rows(task),
            f"{pages}.data",
            f"{pages}.data",
            f"{pages}.tables",
            "tiles",
            self.name(task.output),
            "S->partials",
            "thread->scratch",
            self.width(task.output),
            f"(int64_t){pages}.page_bytes",
            "L->cache",
            c_float(task.node.attributes["scale"] * math.log2(math.e)),
            str(task.node.attributes["window"] or 0),
            "S->splits",
        ]
        return f"{kernel_member(task.kernel)}[S->kv_dtype]", arguments

    def _merge(self, task: Task) -> Call:
        assert task.kernel is not None and task.output is not None
        arguments = [
            "tiles",
            "S->partials",
            self.name(task.output),
            "thread->scratch",
            self.width(task.output),
            str(task.node.attributes["window"] or 0),
            "S->splits",
        ]
        return kernel_member(task.kernel), arguments

    def _quantize(self, task: Task) -> Call:
        assert task.kernel is not None and task.output is not None
        outputs = self._outputs(task.output, [task.input_form])
        return kernel_member(task.kernel), [self.name(task.inputs[0]), *outputs, "N", self.width(task.inputs[0])]

    def _transform(self, task: Task) -> Call:
        assert task.kernel is not None and task.slot is not None and task.output is not None
        m, source = f"L->{c_identifier(task.slot)}", task.inputs[0]
        arguments = [
            self.name(source),
            f"W + {m}.order",
            self.name(task.output),
            f"{m}.columns",
            self.width(source),
        ]
        return kernel_member(task.kernel), arguments

    def _elementwise(self, task: Task) -> Call:
        assert task.output is not None and isinstance(task.kernel, ElementwiseKernel)
        inputs = [self.name(b) for b in task.inputs]
        outputs = self._outputs(task.output, task.kernel.forms)
        return kernel_member(task.kernel), [*inputs, *outputs, "N", self.width(task.output)]


def _expression(kernel: str, arguments: list[str]) -> str:
    return f"K->{kernel}({', '.join(arguments)})"
