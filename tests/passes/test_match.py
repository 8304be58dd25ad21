"""Patterns of ops: where they are found, in which order, and what they leave alone."""

from __future__ import annotations

from smc.ir import Function, TensorType
from smc.passes.match import Pattern, match

SQUARE = Pattern("product", ("mul",), (Pattern("inner", ("silu",), ("x",)), "y"))


def function(*steps: tuple[str, ...], outputs: tuple[str, ...]) -> Function:
    """Steps are (name, op, *inputs)."""
    f = Function("f")
    for name in ("a", "b"):
        f.input(name, TensorType(("n", 4)))
    for name, op, *inputs in steps:
        f.add(op, *inputs, name=name)
    f.set_outputs(*outputs)
    return f


def found(f: Function, pattern: Pattern = SQUARE) -> list[tuple[str, dict[str, str]]]:
    return [(m[pattern.name].name, m.values) for m in match(f, pattern)]


def test_either_order_of_a_product() -> None:
    f = function(("s", "silu", "a"), ("p", "mul", "b", "s"), outputs=("p",))
    assert found(f) == [("p", {"x": "a", "y": "b"})]
    f = function(("s", "silu", "a"), ("p", "mul", "s", "b"), outputs=("p",))
    assert found(f) == [("p", {"x": "a", "y": "b"})]


def test_a_value_may_have_two_names() -> None:
    f = function(("s", "silu", "a"), ("p", "mul", "s", "a"), outputs=("p",))
    assert found(f) == [("p", {"x": "a", "y": "a"})]


def test_inner_nodes_belong_to_the_pattern_alone() -> None:
    f = function(("s", "silu", "a"), ("p", "mul", "s", "b"), ("q", "add", "s", "p"), outputs=("q",))
    assert found(f) == []
    f = function(("s", "silu", "a"), ("p", "mul", "s", "b"), outputs=("p", "s"))
    assert found(f) == []
    f = function(("s", "silu", "a"), ("p", "mul", "s", "s"), outputs=("p",))
    assert found(f) == []


def test_matches_come_in_the_order_of_their_roots() -> None:
    f = function(
        ("s", "silu", "a"),
        ("t", "silu", "b"),
        ("p", "mul", "a", "t"),
        ("q", "mul", "s", "p"),
        outputs=("q",),
    )
    assert [root for root, _ in found(f)] == ["p", "q"]


def test_longer_patterns_and_conditions() -> None:
    outer = Pattern("outer", ("add",), ("z", Pattern("product", ("mul",), (Pattern("inner", ("silu",)), "y"))))
    f = function(("s", "silu", "a"), ("p", "mul", "s", "b"), ("r", "add", "p", "a"), outputs=("r",))
    [only] = match(f, outer)
    assert {label: node.name for label, node in only.nodes.items()} == {"outer": "r", "product": "p", "inner": "s"}
    assert only.values == {"z": "a", "y": "b"}
    never = Pattern("outer", ("add",), ("z", Pattern("product", ("mul",), where=lambda _: False)))
    assert list(match(f, never)) == []
