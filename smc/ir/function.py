"""A `Function`: an SSA graph of nodes, kept in networkx.

The ordered inputs are an attribute of the node; the edges of the graph are derived from them, because a DiGraph would
merge the two edges of `mul(x, x)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx

from smc.ir.ops import find, infer_type
from smc.ir.roles import ROLES
from smc.ir.types import TensorType, Type


@dataclass(frozen=True)
class Node:
    """One value: `name = op(inputs) {attributes} : type`.

    op "input" is a function input (activations), "parameter" a slot that a call fills with a module parameter.
    op "call" runs another function: attribute `function` names it, `parameters` maps its slots to module parameters.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    type: Type = TensorType(())

    @property
    def is_computed(self) -> bool:
        """Whether an op computes it: it is not an input, a parameter slot or a call."""
        return self.op not in ("input", "parameter", "call")

    def argument(self, name: str) -> str | None:
        """The value that an op's node reads as its input `name`; None if it lacks that optional input."""
        return find(self.op).bind(self.inputs, self.attributes)[name]

    @property
    def tensor(self) -> TensorType:
        """The type of a node with one result."""
        assert isinstance(self.type, TensorType), f"{self.name} has several results"
        return self.type


class Function:
    """An SSA graph with named inputs, parameter slots and outputs.

    Build it with `input`, `parameter`, `add` and `set_outputs`.
    Change it with `replace_node`, `replace_uses`, `remove` and `remove_dead`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.outputs: tuple[str, ...] = ()
        self.graph = nx.DiGraph()
        self._next_index = 0

    # ---- building

    def input(self, name: str, type: TensorType) -> str:
        """Declare a function input; returns its name."""
        return self._insert(Node(name, "input", type=type))

    def parameter(self, name: str, *shape: int | str, role: str | None = None) -> str:
        """Declare a parameter slot of this shape (symbols for dims that differ between calls); returns its name.

        role: one of `smc.ir.roles.ROLES`.
        """
        if role is not None and role not in ROLES:
            raise ValueError(f"there is no role {role}")
        return self._insert(Node(name, "parameter", attributes={"role": role}, type=TensorType(shape)))

    def add(self, op: str, *inputs: str, name: str | None = None, type: Type | None = None, **attributes: Any) -> str:
        """Append a node; its type is inferred from the inputs (a `call` has its own). Returns its name.

        Attributes with a default may be left out. TypeFault if the op does not take these inputs.
        """
        if type is None:
            attributes = find(op).complete(attributes)
            type = infer_type(op, [self.node(i).type for i in inputs], attributes)
        return self._insert(Node(name or self.fresh_name(op), op, inputs, attributes, type))

    def set_outputs(self, *names: str) -> None:
        """Declare which values the function returns."""
        self.outputs = names

    def fresh_name(self, stem: str) -> str:
        """A name that is not in use: the stem, or the stem with a number."""
        name, count = stem, 1
        while name in self.graph:
            count += 1
            name = f"{stem}_{count}"
        return name

    def _insert(self, node: Node) -> str:
        if node.name in self.graph:
            raise ValueError(f"function {self.name} already has a value {node.name}")
        self.graph.add_node(node.name, node=node, index=self._next_index)
        self._next_index += 1
        self.graph.add_edges_from((source, node.name) for source in node.inputs)
        return node.name

    # ---- reading

    def node(self, name: str) -> Node:
        """The node that defines the value `name`."""
        found: Node = self.graph.nodes[name]["node"]
        return found

    def nodes(self) -> Iterator[Node]:
        """All nodes, definitions before uses, otherwise in the order they were added (deterministic)."""
        index = self.graph.nodes
        for name in nx.lexicographical_topological_sort(self.graph, key=lambda n: index[n]["index"]):
            yield self.node(name)

    def inputs(self) -> list[Node]:
        """The function inputs, in order of declaration."""
        return [node for node in self.nodes() if node.op == "input"]

    def parameters(self) -> list[Node]:
        """The parameter slots, in order of declaration."""
        return [node for node in self.nodes() if node.op == "parameter"]

    def attentions(self) -> Iterator[Node]:
        """The nodes that read keys and values of earlier tokens."""
        return (node for node in self.nodes() if node.is_computed and find(node.op).cached)

    def users(self, name: str) -> list[Node]:
        """The nodes that read the value `name`."""
        return [self.node(user) for user in self.graph.successors(name)]

    # ---- changing

    def replace_node(self, name: str, **changes: Any) -> None:
        """Change fields of a node (op, inputs, attributes, type); its place and name stay."""
        node = replace(self.node(name), **changes)
        self.graph.remove_edges_from(list(self.graph.in_edges(name)))
        self.graph.nodes[name]["node"] = node
        self.graph.add_edges_from((source, name) for source in node.inputs)

    def replace_uses(self, old: str, new: str) -> None:
        """Let every reader of `old`, and the outputs, read `new` instead."""
        for user in self.users(old):
            self.replace_node(user.name, inputs=tuple(new if i == old else i for i in user.inputs))
        self.outputs = tuple(new if o == old else o for o in self.outputs)

    def remove(self, name: str) -> None:
        """Remove a node that is not read."""
        if any(True for _ in self.graph.successors(name)) or name in self.outputs:
            raise ValueError(f"{self.name}: {name} is still read")
        self.graph.remove_node(name)

    def remove_dead(self) -> int:
        """Remove nodes (not inputs or parameters) from which no output can be reached; returns how many."""
        alive = set(self.outputs)
        for output in self.outputs:
            alive |= nx.ancestors(self.graph, output)
        dead = [n.name for n in self.nodes() if n.name not in alive and n.op not in ("input", "parameter")]
        self.graph.remove_nodes_from(dead)
        return len(dead)

    def copy(self) -> Function:
        """An independent copy (nodes are immutable and shared)."""
        twin = Function(self.name)
        twin.outputs, twin.graph, twin._next_index = self.outputs, self.graph.copy(), self._next_index
        return twin
