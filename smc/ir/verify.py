"""The verifier: runs after every pass; its error names the node and the rule that it breaks."""

from __future__ import annotations

import networkx as nx

from smc.ir.function import Function, Node
from smc.ir.module import Module
from smc.ir.ops import TypeFault, find, infer_type
from smc.ir.types import Dim, TensorType


class VerifyError(Exception):
    """The ir breaks a rule: a bug in the code that made it. The message names the function, the node and the rule."""


def verify(module: Module) -> None:
    """Check every rule of the ir; raises VerifyError for the first one that is broken."""
    if "main" not in module.functions:
        raise VerifyError("the module has no function main")
    for name, function in module.functions.items():
        if function.name != name:
            raise VerifyError(f"function {function.name} is filed under the name {name}")
        verify_function(function)
    for node in module.main.nodes():
        if node.op == "call":
            _verify_call(module, node)
        elif node.op not in ("input",):
            raise VerifyError(f"main: {node.name} is a {node.op}; main only calls functions")
    for name, parameter in module.parameters.items():
        if parameter.name != name:
            raise VerifyError(f"parameter {parameter.name} is filed under the name {name}")
        if not module.uses(name):
            raise VerifyError(f"parameter {name} is used by no call")


def verify_function(function: Function) -> None:
    """Check one function by itself: defined inputs, no cycle, edges that match the inputs, types that follow."""
    where = f"function {function.name}"
    if not function.outputs:
        raise VerifyError(f"{where} has no output")
    if not nx.is_directed_acyclic_graph(function.graph):
        raise VerifyError(f"{where} has a cycle")
    for name, data in function.graph.nodes(data=True):
        if "node" not in data:
            raise VerifyError(f"{where}: {name} is read but never defined")
    for name, data in function.graph.nodes(data=True):
        node: Node = data["node"]
        if set(function.graph.predecessors(name)) != set(node.inputs):
            raise VerifyError(f"{where}: the edges of {name} differ from its inputs")
        if not node.is_computed:
            continue
        try:
            inferred = infer_type(node.op, [function.node(i).type for i in node.inputs], node.attributes)
        except TypeFault as fault:
            raise VerifyError(f"{where}: {name}: {fault}") from None
        for attribute in find(node.op).complete(node.attributes):
            if attribute not in node.attributes:
                raise VerifyError(f"{where}: {name} lacks its attribute {attribute}")
        if inferred != node.type:
            raise VerifyError(f"{where}: {name} is typed {node.type}, but {node.op} gives {inferred}")
    for output in function.outputs:
        if output not in function.graph:
            raise VerifyError(f"{where} returns {output}, which is never defined")


def _verify_call(module: Module, call: Node) -> None:
    where = f"main: call {call.name}"
    callee = module.functions.get(call.attributes["function"])
    if callee is None:
        raise VerifyError(f"{where} runs {call.attributes['function']}, which is not a function of the module")
    slots, given = {p.name for p in callee.parameters()}, call.attributes["parameters"]
    if slots != set(given):
        odd = sorted(slots ^ set(given))[0]
        raise VerifyError(f"{where}: {odd} is {'not given' if odd in slots else 'no parameter slot'} of {callee.name}")
    symbols: dict[str, Dim] = {}
    for slot in callee.parameters():
        parameter = module.parameters.get(given[slot.name])
        if parameter is None:
            raise VerifyError(f"{where}: {given[slot.name]} is not a parameter of the module")
        _bind(symbols, slot.tensor, parameter.shape, f"{where}: parameter {parameter.name} for {slot.name}")
    inputs = callee.inputs()
    if len(inputs) != len(call.inputs):
        raise VerifyError(f"{where}: {callee.name} takes {len(inputs)} inputs, not {len(call.inputs)}")
    for formal, actual in zip(inputs, call.inputs, strict=True):
        _bind(symbols, formal.tensor, module.main.node(actual).tensor.shape, f"{where}: input {actual}")
    result = callee.node(callee.outputs[0]).tensor
    shape = tuple(symbols.get(d, d) if isinstance(d, str) else d for d in result.shape)
    if call.type != TensorType(shape, result.dtype):
        raise VerifyError(f"{where} is typed {call.type}, but {callee.name} gives {TensorType(shape, result.dtype)}")


def _bind(symbols: dict[str, Dim], formal: TensorType, shape: tuple[Dim, ...], what: str) -> None:
    if len(formal.shape) != len(shape):
        raise VerifyError(f"{what} has {len(shape)} dims where {formal} is expected")
    for expected, got in zip(formal.shape, shape, strict=True):
        if isinstance(expected, str):
            if symbols.setdefault(expected, got) != got:
                raise VerifyError(f"{what}: {expected} is {got} here and {symbols[expected]} before")
        elif expected != got:
            raise VerifyError(f"{what} has shape {list(shape)} where {formal} is expected")
