"""Finds patterns of ops in a function, for fusion passes.

A pattern is a small tree of ops, and networkx finds it in a function's graph::

    product = Pattern("product", {"mul"}, (Pattern("activation", ACTIVATIONS, ("gate",)), "up"))
    for found in match(function, product):
        found["product"], found["activation"]  # nodes: the root and what it alone reads
        found.values["gate"], found.values["up"]  # names of values, which others may read too
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from networkx import DiGraph
from networkx.algorithms.isomorphism import DiGraphMatcher

from smc.ir import Function, Module, Node

COMMUTATIVE = frozenset({"add", "mul"})
"""Ops whose inputs a pattern may find in either order."""


@dataclass(frozen=True)
class Pattern:
    """A node of one of `ops`, called `name`.

    inputs: a pattern, or a name for any value, for each input in order; None: any inputs. where: another condition on
    the node.
    """

    name: str
    ops: Collection[str]
    inputs: tuple[Pattern | str, ...] | None = None
    where: Callable[[Node], bool] = lambda _: True

    def fits(self, node: Node) -> bool:
        """Whether a node fits this pattern, apart from its inputs."""
        return node.op in self.ops and self.where(node)

    def graph(self) -> DiGraph:
        """The patterns as nodes of a graph, with edges from a value to its reader, as in a function."""
        graph = DiGraph()
        graph.add_node(self.name, node=self)
        for part in self.inputs or ():
            if isinstance(part, Pattern):
                graph.update(part.graph())
                graph.add_edge(part.name, self.name)
        return graph


@dataclass(frozen=True)
class Match:
    """Where a pattern was found: the nodes of its patterns and the values of its named inputs."""

    nodes: dict[str, Node]
    values: dict[str, str]

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]


def match(function: Function, pattern: Pattern) -> Iterator[Match]:
    """All matches of a pattern in a function, in the order of the root nodes.

    All nodes except the root have one reader and are not outputs: a fusion may remove them.
    """
    matcher = DiGraphMatcher(function.graph, pattern.graph(), lambda have, want: want["node"].fits(have["node"]))
    order = {node.name: place for place, node in enumerate(function.nodes())}
    found = [{label: name for name, label in m.items()} for m in matcher.subgraph_monomorphisms_iter()]
    root_first = [pattern.name, *(label for label in pattern.graph() if label != pattern.name)]
    for places in sorted(found, key=lambda places: [order[places[label]] for label in root_first]):
        inner = {name for label, name in places.items() if label != pattern.name}
        if any(len(function.users(name)) != 1 or name in function.outputs for name in inner):
            continue
        values: dict[str, str] = {}
        if _bind(function, pattern, places, values) and not inner & set(values.values()):
            yield Match({label: function.node(name) for label, name in places.items()}, values)


def rewrite(module: Module, pattern: Pattern, rule: Callable[[Function, Match], None]) -> int:
    """Apply a rule, which must remove the pattern, to every match in every function; returns how often."""
    count = 0
    for function in module.functions.values():
        while (found := next(match(function, pattern), None)) is not None:
            rule(function, found)
            count += 1
    return count


def _bind(function: Function, pattern: Pattern, places: dict[str, str], values: dict[str, str]) -> bool:
    """Name the inputs of a match; False if they do not fit the pattern."""
    if pattern.inputs is None:
        return True
    node = function.node(places[pattern.name])
    orders = itertools.permutations(node.inputs) if node.op in COMMUTATIVE else [node.inputs]
    for inputs in orders:
        if len(inputs) != len(pattern.inputs):
            continue
        pairs = list(zip(pattern.inputs, inputs, strict=True))
        if all(isinstance(part, str) or places[part.name] == name for part, name in pairs):
            values.update({part: name for part, name in pairs if isinstance(part, str)})
            return all(isinstance(part, str) or _bind(function, part, places, values) for part, _ in pairs)
    return False
