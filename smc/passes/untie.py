"""The pass `untie`: gives the head a matrix of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from smc.ir import Module
from smc.passes.base import Context, Pass
from smc.passes.registry import register


@register("untie")
@dataclass(frozen=True)
class Untie(Pass):
    """Give a head that shares the embedding's matrix a parameter of its own, so that the two can differ in precision.

    Both are then stored and counted.
    """

    def run(self, module: Module, context: Context) -> Module:
        """Rename the parameter in every call that multiplies by an embedding's matrix."""
        result = module.copy()
        untied = []
        for name in module.parameters_of("embedding"):
            own_name = "lm_head.weight" if "lm_head.weight" not in result.parameters else f"{name}.untied"
            for call, slot, function in module.uses(name):
                if function.node(slot).attributes["role"] != "embedding":
                    node = result.main.node(call.name)
                    parameters = {**node.attributes["parameters"], slot: own_name}
                    result.main.replace_node(call.name, attributes={**node.attributes, "parameters": parameters})
                    result.parameters[own_name] = replace(module.parameters[name], name=own_name)
            if own_name in result.parameters:
                untied.append(own_name)
        context.report(f"untied: {', '.join(untied)}" if untied else "no parameter is tied")
        return result
