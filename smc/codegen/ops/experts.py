"""Mixtures of experts: route, dispatch, grouped_linear, combine."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from smc.codegen.kernels.abi import I32_FORM, Form, form_for
from smc.codegen.kernels.specs import CombineKernel, DispatchKernel, LinearKernel, RouteKernel
from smc.codegen.ops.linear import in_its_form, product_arguments
from smc.codegen.ops.registry import Lowering, lowers
from smc.codegen.plan.arguments import (
    Activation,
    FirstRow,
    Null,
    Number,
    PrefetchDistance,
    Routing,
    Stride,
    TokenCount,
    WeightSize,
)
from smc.codegen.plan.domains import GroupRows, Groups, Once, Tokens
from smc.codegen.plan.lowering import FunctionLowering, outputs
from smc.codegen.plan.plan import BySlot
from smc.errors import InputError
from smc.ir import Node, Parameter


@lowers("route")
class Route(Lowering):
    """Rows of the same expert come to lie together, in the order of tokens."""

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """One block, which every token's choice is in: what it writes is short."""
        logits, k = f.buffer(node.inputs[0]), int(node.attributes["k"])
        experts = f.function.node(node.inputs[0]).tensor.shape[1]
        assert isinstance(experts, int)
        weights = f.new_buffer(f"{node.name}_weights", k)
        groups, rows, places = (
            f.new_buffer(f"{node.name}_{name}", width, I32_FORM)
            for name, width in (("groups", 3 * k), ("rows", k), ("places", k))
        )
        for user in f.function.users(node.name):
            if user.attributes["index"] == 1:
                f.routings[user.name] = Routing(experts, k, groups, rows, places, weights)
        f.tuples[node.name] = (weights, places)
        f.add(
            node.name,
            "route",
            RouteKernel(experts, k, bool(node.attributes["normalized"])),
            Once(),
            {
                "logits": Activation(logits),
                "weights": Activation(weights),
                "groups": Activation(groups),
                "rows": Activation(rows),
                "places": Activation(places),
                "tokens": TokenCount(),
                "stride": Stride(logits),
            },
            reads=(logits,),
            writes=(weights, groups, rows, places),
        )


@lowers("project")
class Project(Lowering):
    """No operation: the values are there."""

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """Another name for one of several buffers."""
        f.alias(node.name, f.tuples[node.inputs[0]][node.attributes["index"]])


@lowers("dispatch")
class Dispatch(Lowering):
    """From floats: tokens of one expert come from anywhere, and some machines interleave their codes."""

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """Every row at its place, in all forms that matrices read."""
        source, routing = f.buffer(node.inputs[0]), _routing(f, node, node.inputs[1])
        results = f.results(node, lambda form: True, routing)
        f.add(
            node.name,
            "dispatch",
            DispatchKernel(tuple(buffer.form for buffer in results)),
            Groups(routing),
            {
                "x": Activation(source),
                "rows": Activation(routing.rows),
                **outputs(results),
                "first": FirstRow(),
                "tokens": TokenCount(),
                "stride": Stride(source),
            },
            reads=(source, routing.rows),
            writes=results,
        )


@lowers("grouped_linear")
class GroupedLinear(Lowering):
    """The kernels of `linear`, for all rows of an expert at once."""

    def input_forms(self, node: Node, parameter: Callable[[str], Parameter]) -> Mapping[int, Form]:
        """As of `linear`."""
        return {0: form_for(parameter(node.inputs[1]).encoding)}

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """A task reads the matrices of those experts alone that have rows."""
        matrix, routing = node.inputs[1], _routing(f, node, node.inputs[2])
        source, form = in_its_form(f, node)
        out = f.new_buffer(node.name, node.tensor.shape[2], routing=routing)
        f.add(
            node.name,
            "linear",
            BySlot(LinearKernel, matrix, form.kind),
            GroupRows(matrix, routing),
            {
                **product_arguments(source, form, matrix),
                "bias": Null(),
                "out": Activation(out),
                "tokens": TokenCount(),
                "columns": WeightSize(matrix, "columns"),
                "x_stride": Stride(source),
                "out_stride": WeightSize(matrix, "rows"),
                "flags": Number(0),
                "prefetch_distance": PrefetchDistance(),
            },
            reads=(source, routing.groups),
            writes=(out,),
            slots=(matrix,),
            work=lambda sizes: sizes.chosen(matrix, form, routing.chosen),
        )


@lowers("combine")
class Combine(Lowering):
    """Floats in, floats out."""

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """Of every token the rows that its experts made."""
        source, weights, *rest = (f.buffer(value) for value in node.inputs)
        routing = source.routing
        if routing is None:
            raise InputError(f"there is a kernel for {node.op} behind grouped_linear only ({node.name})")
        out = f.new_buffer(node.name, node.tensor.shape[1])
        f.add(
            node.name,
            "combine",
            CombineKernel(routing.chosen, residual=bool(rest)),
            Tokens(),
            {
                "x": Activation(source),
                "weights": Activation(weights),
                "places": Activation(routing.places),
                **dict(zip(("residual",), map(Activation, rest), strict=False)),
                "out": Activation(out),
                "weights_stride": Stride(weights),
                "stride": Stride(out),
            },
            reads=(source, weights, routing.places, *rest),
            writes=(out,),
        )


def _routing(f: FunctionLowering, node: Node, experts: str) -> Routing:
    """What `route` made of these choices."""
    if experts not in f.routings:
        raise InputError(f"there is a kernel for {node.op} only where route chose the experts ({node.name})")
    return f.routings[experts]
