"""Fusion passes: several ops become one that a kernel computes without writing the values between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from smc.ir import Function, Module, Node
from smc.passes.base import Context, Pass
from smc.passes.registry import register


@register("fuse-gated-activation")
@dataclass(frozen=True)
class FuseGatedActivation(Pass):
    """Turn mul(silu(gate), up) into gated_activation(gate, up), in either order of the operands."""

    def run(self, module: Module, context: Context) -> Module:
        """Rewrite every match in every function."""
        result = module.copy()
        count = _rewrite(result, "mul", _fuse_activation)
        context.report(f"{count} fused")
        return result


@register("fuse-residual")
@dataclass(frozen=True)
class FuseResidual(Pass):
    """Turn add(linear, x), in either order, into a linear with x as residual, where nobody else reads the linear."""

    def run(self, module: Module, context: Context) -> Module:
        """Rewrite every match in every function."""
        result = module.copy()
        count = _rewrite(result, "add", _fuse_residual)
        context.report(f"{count} fused")
        return result


FUSIONS: tuple[Pass, ...] = (FuseGatedActivation(), FuseResidual())
"""Always worth it and never a loss: the compiler runs them after the user's passes."""


def _rewrite(module: Module, op: str, rule: Callable[[Function, Node], bool]) -> int:
    """Try the rule on every node of this op in every function; returns how often it fired."""
    return sum(
        rule(function, function.node(name))
        for function in module.functions.values()
        for name in [node.name for node in function.nodes() if node.op == op]
    )


def _only_reader(function: Function, value: str, reader: Node) -> bool:
    return value not in function.outputs and [n.name for n in function.users(value)] == [reader.name]


def _fuse_activation(function: Function, mul: Node) -> bool:
    for activation, up in (mul.inputs, mul.inputs[::-1]):
        silu = function.node(activation)
        if silu.op == "silu" and up != activation and _only_reader(function, activation, mul):
            fused = function.add("gated_activation", silu.inputs[0], up, activation="silu")
            function.replace_uses(mul.name, fused)
            function.remove(mul.name)
            function.remove(activation)
            return True
    return False


def _fuse_residual(function: Function, add: Node) -> bool:
    for product, residual in (add.inputs, add.inputs[::-1]):
        linear = function.node(product)
        fits = linear.op == "linear" and not linear.attributes["residual"] and residual != product
        # The residual cannot depend on the linear: whatever it reads on the way would be a second reader.
        if fits and _only_reader(function, product, add):
            function.replace_uses(add.name, product)
            function.remove(add.name)
            attributes = {**linear.attributes, "residual": True}
            function.replace_node(product, inputs=(*linear.inputs, residual), attributes=attributes)
            return True
    return False
