"""New types for functions whose parameters have changed their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smc.errors import InputError
from smc.ir import Function, Module, TensorType
from smc.ir.types import Dim

Changes = Mapping[tuple[str, str], Mapping[str, Any]]
"""(function, node) → attributes that change."""


def refit(module: Module, changes: Changes | None = None) -> None:
    """Give every slot, node and call of a module the type that follows from the shapes of the parameters.

    Changes the module, which must be a copy. Dims that are symbols stay symbols. InputError if calls of one function
    have parameters of different shapes in a dim that is not a symbol.
    """
    main, fitted = module.main, set[str]()
    for node in list(main.nodes()):
        if node.op != "call":
            continue
        name = node.attributes["function"]
        inputs = [main.node(i).tensor for i in node.inputs]
        shapes = {slot: module.parameters[p].shape for slot, p in node.attributes["parameters"].items()}
        if name not in fitted:
            module.functions[name] = _refitted(module.functions[name], inputs, shapes, changes or {})
            fitted.add(name)
        function = module.functions[name]
        for slot in function.parameters():
            if any(d != e for d, e in zip(slot.tensor.shape, shapes[slot.name], strict=True) if isinstance(d, int)):
                raise InputError(
                    f"{node.name}: {slot.name} has another shape than in other calls, which {name} can't have"
                )
        main.replace_node(node.name, type=function.node(function.outputs[0]).tensor)


def _refitted(
    function: Function, inputs: list[TensorType], shapes: Mapping[str, tuple[int, ...]], changes: Changes
) -> Function:
    result, given = Function(function.name), iter(inputs)
    for node in function.nodes():
        if node.op == "input":
            result.input(node.name, next(given))
        elif node.op == "parameter":
            dims: list[Dim] = [
                old if isinstance(old, str) else new
                for old, new in zip(node.tensor.shape, shapes[node.name], strict=True)
            ]
            result.parameter(node.name, *dims, role=node.attributes["role"])
        else:
            attributes = {**node.attributes, **changes.get((function.name, node.name), {})}
            result.add(node.op, *node.inputs, name=node.name, **attributes)
    result.set_outputs(*function.outputs)
    return result
