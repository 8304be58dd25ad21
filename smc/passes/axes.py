"""The meaning of the dims of a layer's parameters, found by following values through a function.

An axis is the hidden state ("hidden"), the inner width of a feed-forward ("ffn"), or the heads of queries ("query") or
of keys and values ("kv"). A norm on such a value and a bias after a matrix have the same axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from smc.ir import Function, Node

Axis = Literal["hidden", "ffn", "query", "kv"]

ROWS: Mapping[str, Axis] = {
    "query": "query",
    "key": "kv",
    "value": "kv",
    "output": "hidden",
    "gate": "ffn",
    "up": "ffn",
    "down": "hidden",
}
"""The axis of a matrix's rows, by its role."""


@dataclass
class Axes:
    """slots: the axis of every dim of every slot, None for other dims. values: the axis of every value's columns."""

    slots: dict[str, tuple[Axis | None, ...]] = field(default_factory=dict)
    values: dict[str, Axis | None] = field(default_factory=dict)


def axes_of(function: Function) -> Axes:
    """Follow the hidden state: the first input, or the result of the embedding in the function that computes it."""
    axes, inputs = Axes(), function.inputs()
    axes.slots = {slot.name: (None,) * len(slot.tensor.shape) for slot in function.parameters()}
    axes.values = dict.fromkeys((node.name for node in inputs), None)
    if all(node.op != "embedding" for node in function.nodes()):
        axes.values[inputs[0].name] = "hidden"
    for node in function.nodes():
        if node.is_computed:
            axes.values[node.name] = _follow(function, node, axes)
    return axes


def _follow(function: Function, node: Node, axes: Axes) -> Axis | None:
    """The axis of a node's result; records the axes of the slots that it reads."""
    if node.op == "linear":
        weight, bias, x = (node.argument(name) for name in ("weight", "bias", "x"))
        assert weight is not None and x is not None
        rows = ROWS.get(function.node(weight).attributes["role"])
        axes.slots[weight] = (rows, axes.values[x])
        if bias is not None:
            axes.slots[bias] = (rows,)
        return rows
    if node.op == "embedding":
        table = node.argument("table")
        assert table is not None
        axes.slots[table] = (None, "hidden")
        return "hidden"
    read = [axes.values[name] for name in node.inputs if name in axes.values]
    axis = next((axis for axis in read if axis is not None), None)
    if node.op in ("rms_norm", "layer_norm"):
        width = node.tensor.shape[1]
        for name in node.inputs:
            if name in axes.slots and function.node(name).tensor.shape == (width,):
                axes.slots[name] = (axis,)
    return axis
