"""Functions and modules: building, reading and changing graphs."""

from __future__ import annotations

import pytest

from smc.ir import Function, TensorType, print_module, verify
from smc.ir.verify import verify_function
from tests.ir.models import tiny_module

X = TensorType(("n", 4))


def chain(*ops: str) -> Function:
    """A function that applies unary ops one after another."""
    f = Function("f")
    value = f.input("x", X)
    for op in ops:
        value = f.add(op, value)
    f.set_outputs(value)
    return f


def test_ordered_inputs_survive_shared_edges() -> None:
    f = Function("f")
    a, b = f.input("a", X), f.input("b", X)
    f.set_outputs(f.add("add", f.add("mul", a, a), f.add("mul", b, a)))
    assert f.node("mul").inputs == ("a", "a")
    assert f.node("mul_2").inputs == ("b", "a")
    assert [user.name for user in f.users("a")] == ["mul", "mul_2"]
    verify_function(f)


def test_nodes_come_in_the_order_they_were_added() -> None:
    f = chain("silu", "softmax", "silu")
    assert [node.name for node in f.nodes()] == ["x", "silu", "softmax", "silu_2"]


def test_names_are_unique() -> None:
    f = chain("silu")
    with pytest.raises(ValueError, match="already has a value silu"):
        f.add("silu", "x", name="silu")
    assert f.fresh_name("silu") == "silu_2"


def test_replacing_uses_moves_outputs_too() -> None:
    f = chain("silu", "softmax")
    f.replace_uses("softmax", "silu")
    assert f.outputs == ("silu",)
    assert f.remove_dead() == 1
    f.replace_uses("silu", "x")
    f.remove("silu")
    assert [node.name for node in f.nodes()] == ["x"]
    assert f.outputs == ("x",)


def test_a_replaced_node_keeps_its_place() -> None:
    f = chain("silu", "softmax", "silu")
    f.replace_node("softmax", op="silu", inputs=("x",))
    verify_function(f)
    assert f.remove_dead() == 1
    assert [node.name for node in f.nodes()] == ["x", "softmax", "silu_2"]


def test_removing_what_is_read_is_refused() -> None:
    f = chain("silu", "softmax")
    for name in ("silu", "softmax"):
        with pytest.raises(ValueError, match=f"f: {name} is still read"):
            f.remove(name)


def test_names_after_a_removal_stay_in_order() -> None:
    """A node added after a removal must not take the place of an older one in the printed order."""
    f = Function("f")
    x = f.input("x", X)
    for name in ("a", "b", "c", "d"):
        f.add("silu", x, name=name)
    for name in ("a", "b", "c"):
        f.remove(name)
    f.set_outputs(f.add("add", "d", f.add("silu", x, name="e")))
    assert [node.name for node in f.nodes()] == ["x", "d", "e", "add"]
    assert [node.name for node in f.copy().nodes()] == ["x", "d", "e", "add"]
    assert f.copy().add("silu", x) == "silu"


def test_copies_are_independent() -> None:
    module = tiny_module()
    before = print_module(module)
    twin = module.copy()
    block = twin.functions["block"]
    block.replace_node("mul", op="add")
    del twin.parameters["table"]
    assert print_module(module) == before
    verify(module)


def test_what_a_module_says_about_itself() -> None:
    module = tiny_module()
    assert [call.name for call, _ in module.calls()] == ["embedded", "layer_0", "layer_1", "logits"]
    assert [(call.name, slot) for call, slot, _ in module.uses("table")] == [
        ("embedded", "table"),
        ("logits", "weight"),
    ]
    assert module.weight_count() == 5 * 4 + 2 * 4 * 3 + 2 * 4 * 2
    assert module.stored_bits() == 20 * 16 + 40 * 32
    assert module.with_provenance("pruned").facts.provenance == ("made by hand", "pruned")
