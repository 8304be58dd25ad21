"""Fusions: which patterns are rewritten, which must not be, and what the ir looks like afterwards."""

from __future__ import annotations

import pytest

from smc.ir import Function, ModelFacts, Module, TensorType, print_function
from smc.passes import Context, FuseGatedActivation, FuseNormResidual, FuseResidual


def run(step, function):
    """The function after the pass; the pass must leave the given one alone."""
    before = print_function(function)
    facts = ModelFacts("test", "Test", context_length=8, vocab_size=8)
    result = step.run(Module({"block": function}, {}, facts), Context()).functions["block"]
    assert print_function(function) == before
    return result


def start(*outputs, build):
    function = Function("block")
    function.input("x", TensorType(("n", 8)))
    function.parameter("a", 8, 8)
    function.parameter("b", 8, 8)
    build(function)
    function.set_outputs(*outputs)
    return function


@pytest.mark.parametrize("inputs", [("silu", "up"), ("up", "silu")])
def test_gated_activation(inputs):
    def build(f):
        f.add("linear", "x", "a", name="gate", bias=False, residual=False)
        f.add("linear", "x", "b", name="up", bias=False, residual=False)
        f.add("silu", "gate")
        f.add("mul", *inputs)

    assert print_function(run(FuseGatedActivation(), start("mul", build=build))) == (
        "function block(x: f32[n, 8]) {\n"
        "  parameter a: f32[8, 8]\n"
        "  parameter b: f32[8, 8]\n"
        "  gate = linear(x, a) : f32[n, 8]\n"
        "  up = linear(x, b) : f32[n, 8]\n"
        "  gated_activation = gated_activation(gate, up) {activation=silu} : f32[n, 8]\n"
        "  return gated_activation\n"
        "}\n"
    )


def test_a_silu_with_other_readers_stays():
    def build(f):
        f.add("silu", "x")
        f.add("mul", "silu", "x")
        f.add("add", "mul", "silu")

    assert "gated_activation" not in print_function(run(FuseGatedActivation(), start("add", build=build)))


def test_a_silu_times_itself_stays():
    def build(f):
        f.add("silu", "x")
        f.add("mul", "silu", "silu")

    assert "gated_activation" not in print_function(run(FuseGatedActivation(), start("mul", build=build)))


@pytest.mark.parametrize("inputs", [("linear", "x"), ("x", "linear")])
def test_residual(inputs):
    def build(f):
        f.add("linear", "x", "a", bias=False, residual=False)
        f.add("add", *inputs)
        f.add("silu", "add")

    assert print_function(run(FuseResidual(), start("silu", build=build))) == (
        "function block(x: f32[n, 8]) {\n"
        "  parameter a: f32[8, 8]\n"
        "  parameter b: f32[8, 8]\n"
        "  linear = linear(x, a, x) {residual=True} : f32[n, 8]\n"
        "  silu = silu(linear) : f32[n, 8]\n"
        "  return silu\n"
        "}\n"
    )


def test_two_linears_added_become_one_chain():
    def build(f):
        f.add("linear", "x", "a", name="first", bias=False, residual=False)
        f.add("linear", "x", "b", name="second", bias=False, residual=False)
        f.add("add", "first", "second")

    text = print_function(run(FuseResidual(), start("add", build=build)))
    assert "first = linear(x, a, second) {residual=True}" in text
    assert "return first" in text


def test_a_chain_of_additions_is_fused_as_far_as_it_goes():
    def build(f):
        f.add("linear", "x", "a", name="first", bias=False, residual=False)
        f.add("add", "first", "x")
        f.add("linear", "add", "b", name="second", bias=False, residual=False)
        f.add("add", "second", "add", name="sum")

    text = print_function(run(FuseResidual(), start("sum", build=build)))
    assert "first = linear(x, a, x) {residual=True}" in text
    assert "second = linear(first, b, first) {residual=True}" in text


STAYS = ["read twice", "output", "added to itself", "residual depends on it", "has one already"]


@pytest.mark.parametrize("case", STAYS)
def test_residuals_that_must_stay(case):
    def build(f):
        if case == "has one already":
            f.add("linear", "x", "a", "x", name="linear", bias=False, residual=True)
        else:
            f.add("linear", "x", "a", name="linear", bias=False, residual=False)
        f.add("silu", "linear" if case in ("read twice", "residual depends on it") else "x")
        other = {"added to itself": "linear", "residual depends on it": "silu"}.get(case, "x")
        f.add("add", "linear", other)

    outputs = ("add", "linear") if case == "output" else ("add", "silu")
    assert "add = add(linear" in print_function(run(FuseResidual(), start(*outputs, build=build)))


def test_a_norm_takes_its_residual():
    def build(f):
        f.parameter("weight", 8)
        f.add("rms_norm", "x", "weight", eps=1e-5)
        f.add("add", "x", "rms_norm")

    text = print_function(run(FuseNormResidual(), start("add", build=build)))
    assert "rms_norm = rms_norm(x, weight, x) {eps=1e-05, residual=True} : f32[n, 8]\n  return rms_norm" in text


def test_a_norm_with_other_readers_keeps_its_sum():
    def build(f):
        f.parameter("weight", 8)
        f.add("rms_norm", "x", "weight", eps=1e-5)
        f.add("add", "x", "rms_norm")
        f.add("mul", "add", "rms_norm")

    assert "add = add(x, rms_norm)" in print_function(run(FuseNormResidual(), start("mul", build=build)))
