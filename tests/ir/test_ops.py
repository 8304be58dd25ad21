"""The registry of ops: every op is there as a whole, and says what it takes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from smc.ir import Function, TensorType, ops
from smc.ir.ops import OPS
from smc.reference.exact import RULES

NUMERICS = (Path(__file__).parents[2] / "docs" / "numerics.md").read_text(encoding="utf-8")
WITH_KERNELS = sorted(name for name, op in OPS.items() if op.kernel)


def test_what_has_no_kernel_on_purpose() -> None:
    assert {name for name in OPS if name not in WITH_KERNELS} == {"softmax"}


@pytest.mark.parametrize("name", OPS)
def test_every_op_says_what_it_computes(name: str) -> None:
    assert inspect.getdoc(OPS[name].compute), f"{name} has no docstring"


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_every_op_has_an_exact_rule_with_its_own_parameters(name: str) -> None:
    assert name in RULES, f"{name} has no rule in smc/reference/exact"
    op, rule = OPS[name], inspect.signature(RULES[name]).parameters
    assert list(rule) == [*op.inputs, *inspect.signature(op.compute).parameters][len(op.inputs) :], name


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_every_op_has_a_paragraph_of_numerics(name: str) -> None:
    assert re.search(rf"^(- )?`{name}`", NUMERICS, re.MULTILINE), f"docs/numerics.md has no paragraph on {name}"


def test_exact_rules_are_of_ops() -> None:
    assert set(RULES) <= set(OPS)


def test_defaults_are_filled_in() -> None:
    f = Function("f")
    x = f.input("x", TensorType(("n", 8)))
    name = f.add("linear", x, f.parameter("w", 4, 8))
    assert f.node(name).attributes == {"bias": False, "residual": False}


def test_inputs_have_names() -> None:
    f = Function("f")
    x = f.input("x", TensorType(("n", 8)))
    name = f.add("linear", x, f.parameter("w", 8, 8), x, residual=True)
    node = f.node(name)
    assert [node.argument(a) for a in ("x", "weight", "bias", "residual")] == ["x", "w", None, "x"]


def test_unknown_attributes_are_refused() -> None:
    f = Function("f")
    with pytest.raises(ops.TypeFault, match="silu has no attribute eps"):
        f.add("silu", f.input("x", TensorType(("n", 8))), eps=1e-5)
