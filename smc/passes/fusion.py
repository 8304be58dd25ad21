"""Fusion passes: several ops become one, whose kernel does not write the values between them."""

from __future__ import annotations

from dataclasses import dataclass

from smc.ir import Function, Module, Node
from smc.ir.activations import ACTIVATIONS
from smc.passes.base import Context, Pass
from smc.passes.match import Match, Pattern, rewrite
from smc.passes.registry import register


@register("fuse-gated-activation")
@dataclass(frozen=True)
class FuseGatedActivation(Pass):
    """Turn activation(gate) * up, in either order, into gated_activation(gate, up)."""

    def run(self, module: Module, context: Context) -> Module:
        """Rewrite every match in every function."""
        result = module.copy()
        count = rewrite(result, _GATED, _fuse_activation)
        context.report(f"{count} fused")
        return result


@register("fuse-residual")
@dataclass(frozen=True)
class FuseResidual(Pass):
    """Turn add(linear, x), in either order, into a linear with x as residual, if nothing else reads the linear; and the
    sum of what experts computed in the same way."""

    def run(self, module: Module, context: Context) -> Module:
        """Rewrite every match in every function."""
        result = module.copy()
        count = rewrite(result, _RESIDUAL, _add_residual)
        context.report(f"{count} fused")
        return result


@register("fuse-norm-residual")
@dataclass(frozen=True)
class FuseNormResidual(Pass):
    """Turn add(rms_norm, x), in either order, into a norm with x as residual, if nothing else reads the norm."""

    def run(self, module: Module, context: Context) -> Module:
        """Rewrite every match in every function."""
        result = module.copy()
        count = rewrite(result, _NORM_RESIDUAL, _add_residual)
        context.report(f"{count} fused")
        return result


FUSIONS: tuple[Pass, ...] = (FuseGatedActivation(), FuseResidual(), FuseNormResidual())
"""Fusions that are always faster: the compiler runs them after the user's passes."""


_GATED = Pattern("product", ("mul",), (Pattern("activation", ACTIVATIONS, ("gate",)), "up"))


def _has_no_residual(node: Node) -> bool:
    return not node.attributes["residual"]


_RESIDUAL = Pattern("sum", ("add",), (Pattern("maker", ("linear", "combine"), where=_has_no_residual), "x"))
_NORM_RESIDUAL = Pattern("sum", ("add",), (Pattern("maker", ("rms_norm",), where=_has_no_residual), "x"))


def _fuse_activation(function: Function, found: Match) -> None:
    activation, product = found["activation"], found["product"].name
    gate, up = found.values["gate"], found.values["up"]
    function.replace_uses(product, function.add("gated_activation", gate, up, activation=activation.op))
    function.remove(product)
    function.remove(activation.name)


def _add_residual(function: Function, found: Match) -> None:
    # The residual can't depend on the fused node: then that node would have a second reader.
    maker, total = found["maker"], found["sum"].name
    function.replace_uses(total, maker.name)
    function.remove(total)
    attributes = {**maker.attributes, "residual": True}
    function.replace_node(maker.name, inputs=(*maker.inputs, found.values["x"]), attributes=attributes)
