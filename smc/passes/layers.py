"""Layers in another order, some left out, some repeated: what all passes do that change the depth."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from smc.errors import InputError
from smc.ir import Function, Module, Node


def arranged(module: Module, picks: Sequence[int]) -> Module:
    """The module whose layer j is a copy of layer picks[j] of this one.

    A layer that is picked twice has parameters of its own each time. Calls and parameters are named by their new
    places; the layer map goes with the calls. InputError if a layer shares parameters with another one.
    """
    layers = module.layer_calls()
    _check_chain(module, layers)
    inside = {call.name for call in layers}
    main, names = Function("main"), {node.name: node.name for node in module.main.nodes()}
    parameters = {}
    for call, slots in ((call, call.attributes["parameters"].values()) for call, _ in module.calls()):
        parameters.update({name: module.parameters[name] for name in slots if call.name not in inside})
    nodes = list(module.main.nodes())
    first = next(index for index, node in enumerate(nodes) if node.name in inside)
    for node in nodes[:first]:
        _insert(main, node, node.name, names, node.attributes["parameters"] if node.op == "call" else {})
    state = layers[0].inputs[0]
    for place, pick in enumerate(picks):
        call = layers[pick]
        bound = {}
        for slot, name in call.attributes["parameters"].items():
            bound[slot] = _renumbered(name, pick, place, parameters)
            parameters[bound[slot]] = replace(module.parameters[name], name=bound[slot])
        names[call.inputs[0]] = state
        state = _insert(main, call, f"layer_{place}", names, bound)
    names[layers[-1].name] = state
    for node in nodes[first:]:
        if node.name not in inside:
            _insert(main, node, node.name, names, node.attributes.get("parameters", {}))
    main.set_outputs(*(names[name] for name in module.main.outputs))
    used = {node.attributes["function"] for node in main.nodes() if node.op == "call"}
    functions = {name: f.copy() for name, f in module.functions.items() if name in used}
    return Module({"main": main, **functions}, parameters, module.facts)


def _check_chain(module: Module, layers: Sequence[Node]) -> None:
    """Check that every layer's first input is the layer before it, and that it shares no parameters."""
    if not layers:
        raise InputError(f"{module.facts.name} has no layers that attend")
    for before, call in itertools.pairwise(layers):
        if call.inputs[0] != before.name:
            raise InputError(f"{call.name} does not read {before.name}: only layers in sequence can be moved")
    for call in layers:
        for name in call.attributes["parameters"].values():
            if len(module.uses(name)) > 1:
                raise InputError(f"{call.name} shares the parameter {name} with another call, so it can't be moved")


def _insert(main: Function, node: Node, name: str, names: dict[str, str], parameters: dict[str, str]) -> str:
    """Append a node of the old `main` under a new name, with the new names of its inputs."""
    inputs = [names[i] for i in node.inputs]
    if node.op == "input":
        return main.input(name, node.tensor)
    return main.add(node.op, *inputs, name=name, type=node.type, **{**node.attributes, "parameters": parameters})


def _renumbered(name: str, old: int, new: int, taken: Iterable[str]) -> str:
    """A parameter's name with its layer's number changed ("model.layers.3.…"), or the number appended."""
    parts = re.split(rf"(?<![^.]){old}(?![^.])", name, maxsplit=1)
    result = str(new).join(parts) if len(parts) == 2 else f"{name}.{new}"
    while result in taken:
        result = f"{result}.copy"
    return result


def parse_layers(items: Sequence[str], count: int, what: str) -> list[int]:
    """Numbers of layers from items such as "3" and "0-20" (both ends included). InputError for a wrong item."""
    found: list[int] = []
    for item in items:
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", str(item))
        if match is None:
            raise InputError(f"{what} takes layers such as 3 or 0-20, joined by +, not {item!r}")
        start, end = int(match[1]), int(match[2] or match[1])
        if end < start:
            raise InputError(f"{what}: the range {item} is backwards: write {end}-{start}")
        if end >= count:
            raise InputError(f"{what}: there is no layer {end}: the model has layers 0 to {count - 1}")
        found += range(start, end + 1)
    return found


def ranges(layers: Sequence[int]) -> str:
    """Layers as people write them: "0-11, 16, 18-29"."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][-1] + 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    return ", ".join(str(s[0]) if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in spans)
