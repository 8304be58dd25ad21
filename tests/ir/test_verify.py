"""The verifier: every rule, broken one at a time, is named in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from smc.ir import Function, Module, RopeTable, TensorType, VerifyError, verify
from smc.ir.ops import TypeFault
from smc.ir.verify import verify_function
from tests.ir.models import parameter, tiny_module


def test_a_sound_module() -> None:
    verify(tiny_module())


def edit_call(module: Module, name: str, **attributes: Any) -> None:
    call = module.main.node(name)
    module.main.replace_node(name, attributes={**call.attributes, **attributes})


def lose_main(module: Module) -> None:
    del module.functions["main"]


def misfile_function(module: Module) -> None:
    module.functions["other"] = module.functions["head"]


def misfile_parameter(module: Module) -> None:
    module.parameters["other"] = module.parameters["table"]


def add_unused_parameter(module: Module) -> None:
    module.parameters["spare"] = parameter("spare", 3)


def compute_in_main(module: Module) -> None:
    module.main.set_outputs(module.main.add("silu", "logits"))


def call_nobody(module: Module) -> None:
    edit_call(module, "layer_1", function="nobody")


def forget_slot(module: Module) -> None:
    edit_call(module, "layer_1", parameters={"up": "up.1"})


def fill_unknown_slot(module: Module) -> None:
    edit_call(module, "layer_1", parameters={"up": "up.1", "down": "down.1", "side": "table"})


def name_unknown_parameter(module: Module) -> None:
    edit_call(module, "layer_1", parameters={"up": "up.7", "down": "down.1"})


def mix_widths(module: Module) -> None:
    edit_call(module, "layer_1", parameters={"up": "up.1", "down": "down.0"})


def change_shape(module: Module) -> None:
    module.parameters["table"] = parameter("table", 6, 4)


def change_rank(module: Module) -> None:
    module.parameters["up.0"] = parameter("up.0", 12)


def give_two_inputs(module: Module) -> None:
    module.main.replace_node("layer_1", inputs=("layer_0", "layer_0"))


def give_wrong_input(module: Module) -> None:
    module.main.replace_node("layer_1", inputs=("logits",))
    module.main.replace_node("logits", inputs=("layer_0",))


def mistype_call(module: Module) -> None:
    module.main.replace_node("logits", type=TensorType(("n", 4)))


BROKEN: dict[Callable[[Module], None], str] = {
    lose_main: "the module has no function main",
    misfile_function: "function head is filed under the name other",
    misfile_parameter: "parameter table is filed under the name other",
    add_unused_parameter: "parameter spare is used by no call",
    compute_in_main: "main: silu is a silu; main only calls functions",
    call_nobody: "main: call layer_1 runs nobody, which is not a function of the module",
    forget_slot: "main: call layer_1: down is not given of block",
    fill_unknown_slot: "main: call layer_1: side is no parameter slot of block",
    name_unknown_parameter: "main: call layer_1: up.7 is not a parameter of the module",
    mix_widths: "main: call layer_1: parameter down.0 for down: ffn is 3 here and 2 before",
    change_shape: "parameter table for table has shape [6, 4] where f32[5, 4] is expected",
    change_rank: "parameter up.0 for up has 1 dims where f32[ffn, 4] is expected",
    give_two_inputs: "main: call layer_1: block takes 1 inputs, not 2",
    give_wrong_input: "main: call layer_1: input logits has shape ['n', 5] where f32[n, 4] is expected",
    mistype_call: "main: call logits is typed f32[n, 4], but head gives f32[n, 5]",
}


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda function: function.__name__)
def test_broken_module(break_it: Callable[[Module], None]) -> None:
    module = tiny_module()
    break_it(module)
    with pytest.raises(VerifyError) as caught:
        verify(module)
    assert BROKEN[break_it] in str(caught.value)


def block() -> Function:
    return tiny_module().functions["block"]


def test_no_output() -> None:
    function = block()
    function.set_outputs()
    with pytest.raises(VerifyError, match="function block has no output"):
        verify_function(function)


def test_undefined_output() -> None:
    function = block()
    function.set_outputs("nothing")
    with pytest.raises(VerifyError, match="returns nothing, which is never defined"):
        verify_function(function)


def test_undefined_value() -> None:
    function = block()
    function.replace_node("mul", inputs=("h", "ghost"))
    with pytest.raises(VerifyError, match="ghost is read but never defined"):
        verify_function(function)


def test_cycle() -> None:
    function = block()
    function.replace_node("h", inputs=("add", "up"))
    with pytest.raises(VerifyError, match="function block has a cycle"):
        verify_function(function)


def test_edges_that_differ_from_inputs() -> None:
    function = block()
    function.graph.nodes["mul"]["node"] = replace(function.node("mul"), inputs=("h", "x"))
    with pytest.raises(VerifyError, match="the edges of mul differ from its inputs"):
        verify_function(function)


def test_type_that_does_not_follow() -> None:
    function = block()
    function.replace_node("mul", type=TensorType(("n", 4)))
    with pytest.raises(VerifyError, match=r"mul is typed f32\[n, 4\], but mul gives f32\[n, ffn\]"):
        verify_function(function)


def test_op_that_does_not_fit_its_inputs() -> None:
    function = block()
    function.replace_node("mul", inputs=("h", "x"))
    with pytest.raises(VerifyError, match=r"mul: an element-wise op takes two inputs of one shape, not .*ffn.*, .*4"):
        verify_function(function)


X, VECTOR = TensorType(("n", 8)), TensorType((8,))
FAULTS: dict[str, tuple[str, list[TensorType], dict[str, Any], str]] = {
    "unknown op": ("conv", [X], {}, "conv"),
    "missing attribute": ("rms_norm", [X, VECTOR], {}, "rms_norm needs the attribute eps"),
    "too few inputs": ("rms_norm", [X], {"eps": 1e-5}, "rms_norm takes 2 inputs, not 1"),
    "wrong rank": ("rms_norm", [X, X], {"eps": 1e-5}, "weight of rms_norm must have 1 dims"),
    "width": ("rms_norm", [X, TensorType((9,))], {"eps": 1e-5}, "the weight's 9 columns do not divide the width 8"),
    "columns": ("linear", [X, TensorType((3, 7))], {"bias": False, "residual": False}, "differ, 8 and 7"),
    "bias": ("linear", [X, TensorType((3, 8)), VECTOR], {"bias": True, "residual": False}, "bias differ, 3 and 8"),
    "residual": (
        "linear",
        [X, TensorType((3, 8)), X],
        {"bias": False, "residual": True},
        "residual width differ, 3 and 8",
    ),
    "odd head_dim": (
        "rope",
        [X, TensorType(("n",))],
        {"head_dim": 1, "table": RopeTable((1.0,))},
        "even head_dim 1",
    ),
    "pairs": ("rope", [X, TensorType(("n",))], {"head_dim": 4, "table": RopeTable((1.0,) * 3)}, "3 pairs does not fit"),
    "heads": (
        "attention",
        [X, X, X],
        {"heads": 3, "kv_heads": 2, "head_dim": 4, "scale": 0.5, "window": None},
        "3 heads are not a multiple of 2 KV heads",
    ),
    "kv width": (
        "attention",
        [X, X, TensorType(("n", 4))],
        {"heads": 2, "kv_heads": 2, "head_dim": 4, "scale": 0.5, "window": None},
        "width of k or v and kv_heads * head_dim differ, 4 and 8",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_ops_refuse_what_they_do_not_take(case: str) -> None:
    op, types, attributes, message = FAULTS[case]
    function = Function("f")
    inputs = [function.input(f"x{place}", type) for place, type in enumerate(types)]
    with pytest.raises(TypeFault) as caught:
        function.add(op, *inputs, **attributes)
    assert message in str(caught.value)
