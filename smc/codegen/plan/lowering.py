"""A function while its ops are lowered: the operations on buffers so far, and methods that add to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smc.codegen.kernels.abi import F32_FORM, Form
from smc.codegen.kernels.specs import ElementwiseKernel, QuantizeTokensKernel
from smc.codegen.plan.arguments import Activation, Argument, Buffer, Routing, Stride, TokenCount
from smc.codegen.plan.domains import Columns, Domain, Groups, Tokens
from smc.codegen.plan.plan import KernelChoice, Operation
from smc.errors import InputError
from smc.ir import Function, Node, RopeTable

Forms = Mapping[tuple[str, int], Form]
"""The form in which a node reads an input, by node and index of the input; floats for those that are missing."""

TILE_GROUP = 32
"""Columns that share a scale if any tile of columns can be rounded by itself."""


class FunctionLowering:
    """A function of the ir that is being lowered; ops add their operations in the order of the graph.

    rotations: values that readers must rotate first. head_norms: values whose heads readers must normalize first,
    before a rotation, and the nodes of these norms. routings: by the value that says which experts tokens chose.
    tuples: the buffers of values that are several tensors. lowered: the nodes whose operations exist.
    """

    def __init__(self, function: Function, forms: Forms) -> None:
        self.function, self.forms = function, forms
        self.operations: list[Operation] = []
        self.rotations: dict[str, RopeTable] = {}
        self.head_norms: dict[str, Node] = {}
        self.routings: dict[str, Routing] = {}
        self.tuples: dict[str, tuple[Buffer, ...]] = {}
        self.lowered: set[str] = set()
        self._buffers: dict[tuple[str, Form], Buffer] = {}
        self._writers: dict[Buffer, Operation] = {}
        self._readers: dict[Buffer, list[Operation]] = {}

    # ---- values

    def buffer(self, value: str) -> Buffer:
        """The floats of a value; InputError if they would have to be rotated or normed first."""
        if value in self.rotations or value in self.head_norms:
            turned = f"{value}, whose heads are rotated or normed,"
            raise InputError(f"there is no kernel yet that reads {turned} but attention")
        return self._buffers[value, F32_FORM]

    def unturned(self, value: str) -> Buffer:
        """The floats of a value before its heads are normalized and rotated."""
        return self._buffers[value, F32_FORM]

    def new_buffer(
        self, value: str, width: int | str, form: Form = F32_FORM, routing: Routing | None = None
    ) -> Buffer:
        """The new buffer of a value."""
        buffer = self._buffers[value, form] = Buffer(value, width, form, routing)
        return buffer

    def alias(self, value: str, buffer: Buffer) -> None:
        """Put the floats of a value into an existing buffer."""
        self._buffers[value, F32_FORM] = buffer

    def results(
        self, node: Node, makes: Callable[[Form], bool], routing: Routing | None = None
    ) -> tuple[Buffer, ...]:
        """New buffers for a value in all forms that readers need and its kernel can write. If it can't write one of
        them, there are floats, too, from which that form is rounded."""
        wanted = self._reader_forms(node)
        forms = [form for form in wanted if makes(form)]
        if len(forms) < len(wanted) and F32_FORM not in forms:
            forms.insert(0, F32_FORM)
        return tuple(self.new_buffer(node.name, node.tensor.shape[-1], form, routing) for form in forms)

    def in_form(self, value: str, form: Form) -> Buffer:
        """A value in a form, rounded by an operation of its own if its kernel does not write this form.

        Such codes have a buffer of their own: the value's may be written again in place.
        """
        if form == F32_FORM:
            return self.buffer(value)
        if (value, form) not in self._buffers:
            source = self.buffer(value)
            self._quantize(value, source, self.new_buffer(value, source.width, form, source.routing))
        return self._buffers[value, form]

    def _reader_forms(self, node: Node) -> list[Form]:
        """The forms in which a value is read; one that is returned or read by other ops is kept as floats."""
        forms = [
            self.forms.get((user.name, place), F32_FORM)
            for user in self.function.users(node.name)
            for place, name in enumerate(user.inputs)
            if name == node.name
        ]
        # Changes of the order or the basis of columns start from floats.
        forms = [F32_FORM if form.needs_transform else form for form in forms]
        if node.name in self.function.outputs:
            forms.append(F32_FORM)
        return sorted(dict.fromkeys(forms), key=str)

    def _quantize(self, value: str, source: Buffer, codes: Buffer) -> None:
        form = codes.form
        any_tile = form.group == TILE_GROUP
        kernel = ElementwiseKernel("copy", (form,)) if any_tile else QuantizeTokensKernel(form)
        self.add(
            value,
            "quantize",
            kernel,
            columns(source) if any_tile else tokens(source),
            {
                "a" if any_tile else "x": Activation(source),
                **outputs([codes]),
                "tokens": TokenCount(),
                "stride": Stride(source),
            },
            reads=(source,),
            writes=(codes,),
            repeatable=source.routing is None,
        )

    # ---- operations

    def add(
        self,
        name: str,
        kind: str,
        kernel: KernelChoice,
        domain: Domain,
        arguments: Mapping[str, Argument],
        **facts: Any,
    ) -> Operation:
        """Add an operation (facts: other fields of `Operation`).

        It comes after those that make what it reads, and after all that read or made what it writes in place.
        """
        if isinstance(domain, Groups):
            facts["reads"] = (*facts["reads"], domain.routing.groups)
        operation = Operation(name, kind, kernel, domain, arguments, **facts)
        for buffer in operation.reads:
            if buffer in self._writers:
                operation.after.append(self._writers[buffer])
        for buffer in operation.writes:
            operation.after += self._readers.get(buffer, [])
            if buffer in self._writers:
                operation.after.append(self._writers[buffer])
        for buffer in operation.reads:
            self._readers.setdefault(buffer, []).append(operation)
        for buffer in operation.writes:
            self._writers[buffer] = operation
        operation.after = list(dict.fromkeys(operation.after))
        self.operations.append(operation)
        return operation


def columns(buffer: Buffer) -> Domain:
    """The domain of kernels on tiles of columns, each by itself."""
    return Columns(buffer) if buffer.routing is None else Groups(buffer.routing, buffer)


def tokens(buffer: Buffer) -> Domain:
    """The domain of kernels on whole rows, each by itself."""
    return Tokens() if buffer.routing is None else Groups(buffer.routing)


def outputs(buffers: Sequence[Buffer]) -> dict[str, Argument]:
    """The arguments of a kernel that writes a value in several forms: out, or codes, scales and sums by number."""
    arguments: dict[str, Argument] = {}
    for place, buffer in enumerate(buffers):
        if buffer.form == F32_FORM:
            arguments["out"] = Activation(buffer)
        else:
            arguments[f"codes_{place}"] = Activation(buffer)
            arguments[f"scales_{place}"] = Activation(buffer, "scales")
            arguments[f"sums_{place}"] = Activation(buffer, "sums")
    return arguments
