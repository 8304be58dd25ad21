"""Deterministic text of the ir, for readers and for comparisons in tests.

::

    function block(x: f32[n, 576], positions: i32[n]) {
      parameter input_layernorm: f32[576]
      rms_norm = rms_norm(x, input_layernorm) {eps=1e-05} : f32[n, 576]
      …
      return add_2
    }
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smc.ir.function import Function, Node
from smc.ir.module import Module
from smc.ir.ops import find


def print_module(module: Module) -> str:
    """The whole module: its facts in a comment, the parameters with their encodings, every function."""
    facts = module.facts
    lines = [
        f"module {facts.name}  # {facts.architecture}, context {facts.context_length}, "
        f"{module.weight_count():,} weights, {module.bits_per_weight():.2f} bits each",
        *(f"# {line}" for line in facts.provenance),
        "",
        *(f"parameter {p.name}: {list(p.shape)} {p.encoding}" for p in module.parameters.values()),
    ]
    for function in module.functions.values():
        lines += ["", *_function_lines(function)]
    return "\n".join(lines) + "\n"


def print_function(function: Function) -> str:
    """One function."""
    return "\n".join(_function_lines(function)) + "\n"


def _function_lines(function: Function) -> Iterator[str]:
    inputs = ", ".join(f"{node.name}: {node.type}" for node in function.inputs())
    yield f"function {function.name}({inputs}) {{"
    for node in function.parameters():
        yield f"  parameter {node.name}: {node.type}"
    for node in function.nodes():
        if node.op not in ("input", "parameter"):
            yield f"  {_node_text(node)}"
    yield f"  return {', '.join(function.outputs)}"
    yield "}"


def _node_text(node: Node) -> str:
    if node.op == "call":
        slots = ", ".join(f"{slot}={name}" for slot, name in node.attributes["parameters"].items())
        return f"{node.name} = {node.attributes['function']}({', '.join(node.inputs)}) [{slots}] : {node.type}"
    defaults = find(node.op).defaults
    shown = {k: v for k, v in node.attributes.items() if k not in defaults or v != defaults[k]}
    attributes = " {" + ", ".join(f"{k}={_value_text(v)}" for k, v in shown.items()) + "}" if shown else ""
    return f"{node.name} = {node.op}({', '.join(node.inputs)}){attributes} : {node.type}"


def _value_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
