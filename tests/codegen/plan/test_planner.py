"""Plans: what calls share, and which operations a function has on which buffers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import smc
from smc.codegen.ops import LOWERINGS
from smc.codegen.plan.plan import FunctionPlan, Plan
from smc.codegen.plan.planner import make_plan
from smc.codegen.plan.printer import print_plan
from smc.errors import InputError
from smc.ir import Function, Module, RopeTable, TensorType
from smc.ir.ops import OPS
from smc.passes import FUSIONS, apply
from tests.codegen.modules import block_with, different_widths, linear, mixed_bits
from tests.ir.models import tiny_module

MakeCheckpoint = Callable[..., tuple[Path, Any]]


def planned(module: Module, passes: list[str] | None = None) -> Plan:
    return make_plan(apply(module, [*(passes or []), *FUSIONS]))


def buffers(function: FunctionPlan) -> dict[str, str]:
    """By operation: the buffers that it reads and writes."""
    return {str(o): f"{' '.join(map(str, o.reads))} -> {' '.join(map(str, o.writes))}" for o in function.operations}


def test_a_layer_as_kernels_on_buffers(make_checkpoint: MakeCheckpoint) -> None:
    """Every kernel for itself: no chain, nothing private, whatever a device makes of it."""
    plan = planned(smc.load_checkpoint(make_checkpoint()[0]), ["quantize-rtn:bits=4,activation_group=128"])
    (block,) = plan.blocks
    codes = "i8_g128_s32"
    assert buffers(block) == {
        "input_layernorm": f"x:f32 -> attention_norm:{codes}",
        "q_proj": f"attention_norm:{codes} -> q:f32",
        "k_proj": f"attention_norm:{codes} -> k:f32",
        "v_proj": f"attention_norm:{codes} -> v:f32",
        "rope_cache of attention": "k:f32 v:f32 -> ",
        "attention of attention": "q:f32 -> attention:f32",
        "merge of attention": " -> attention:f32",
        "quantize of attention": f"attention:f32 -> attention:{codes}",
        "o_proj": f"attention:{codes} x:f32 -> x:f32",
        "post_attention_layernorm": f"x:f32 -> ffn_norm:{codes}",
        "gate_proj": f"ffn_norm:{codes} -> gate:f32",
        "up_proj": f"ffn_norm:{codes} -> up:f32",
        "gated_silu of gated_activation": "gate:f32 up:f32 -> gated_activation:f32",
        "quantize of gated_activation": f"gated_activation:f32 -> gated_activation:{codes}",
        "down_proj": f"gated_activation:{codes} x:f32 -> x:f32",
    }
    assert block.in_place
    text = print_plan(plan)
    assert "calls: embed block block head\n" in text
    assert all(str(operation) in text for operation in plan.operations())


def test_operations_come_after_what_they_need(make_checkpoint: MakeCheckpoint) -> None:
    """Who writes in place, after all that read or made what was there."""
    (block,) = planned(smc.load_checkpoint(make_checkpoint()[0]), ["quantize-rtn:bits=4"]).blocks
    after = {str(o): [str(other) for other in o.after] for o in block.operations}
    assert after["input_layernorm"] == []
    assert after["attention of attention"] == ["q_proj", "rope_cache of attention"]
    assert after["merge of attention"] == ["attention of attention"]
    assert after["o_proj"] == ["quantize of attention", "input_layernorm"]
    assert after["post_attention_layernorm"] == ["o_proj"]
    assert {"gated_silu of gated_activation", "o_proj", "post_attention_layernorm"} <= set(after["down_proj"])


def test_every_form_that_is_read_is_made(make_checkpoint: MakeCheckpoint) -> None:
    """One norm for readers of floats, and of codes with sums over 16 and over 32."""
    chain = ["quantize-rtn:bits=8,group=16,include=v_proj", "quantize-rtn:bits=8,exclude=k_proj"]
    (block,) = planned(smc.load_checkpoint(make_checkpoint()[0]), chain).blocks
    found = buffers(block)
    made = "attention_norm:f32 attention_norm:i8_g32_s16 attention_norm:i8_g32_s32"
    assert found["input_layernorm"] == f"x:f32 -> {made}"
    assert found["q_proj"] == "attention_norm:i8_g32_s32 -> q:f32"
    assert found["k_proj"] == "attention_norm:f32 -> k:f32"
    assert found["v_proj"] == "attention_norm:i8_g32_s16 -> v:f32"


def test_dead_nodes_have_no_operation() -> None:
    def build(block: Function, x: str) -> str:
        block.add("mul", block.add("silu", x), x)
        return block.add("add", x, x)

    assert [o.kind for o in make_plan(block_with(build)).blocks[0].operations] == ["add"]


def test_equal_layers_share_a_function(make_checkpoint: MakeCheckpoint) -> None:
    plan = planned(smc.load_checkpoint(make_checkpoint(num_hidden_layers=3)[0]))
    (block,) = plan.blocks
    assert [call.name for call in block.calls] == [call.name for call in plan.module.layer_calls()]
    assert [function.name for function, _ in plan.order] == ["embed", "block", "block", "block", "head"]


def test_ffn_widths_share_a_function(make_checkpoint: MakeCheckpoint) -> None:
    module = smc.load_checkpoint(make_checkpoint(num_hidden_layers=30)[0])
    plan = planned(different_widths(module, list(range(80, 50, -1))))
    (block,) = plan.blocks
    assert block.symbols() != []
    assert len(block.calls) == 30


def test_bits_of_one_form_share_a_function(make_checkpoint: MakeCheckpoint) -> None:
    module = mixed_bits(smc.load_checkpoint(make_checkpoint(num_hidden_layers=8)[0]), 8)
    plan = planned(module)
    (block,) = plan.blocks
    assert len(block.calls) == 8
    assert [str(kernel.encoding) for kernel in plan.linear_kernels()] == ["int8.g32", "int4.g32"]


def test_other_forms_take_another_function(make_checkpoint: MakeCheckpoint) -> None:
    chain = ["quantize-rtn:bits=4,exclude=model.layers.1.*"]
    plan = planned(smc.load_checkpoint(make_checkpoint(num_hidden_layers=4)[0]), chain)
    assert [function.name for function, _ in plan.order] == ["embed", "block", "block_2", "block", "block", "head"]


def test_attributes_are_compared_exactly(make_checkpoint: MakeCheckpoint) -> None:
    """Two layers that differ in the last bit of a number are two functions."""
    module = smc.load_checkpoint(make_checkpoint()[0]).copy()
    other = module.functions["block"].copy()
    other.name = "other"
    norm = next(node for node in other.nodes() if node.op == "rms_norm")
    other.replace_node(norm.name, attributes={**norm.attributes, "eps": norm.attributes["eps"] * (1 + 2**-50)})
    module.functions["other"] = other
    last = module.layer_calls()[-1]
    module.main.replace_node(last.name, attributes={**last.attributes, "function": "other"})
    assert len(planned(module).blocks) == 2


def test_a_residual_read_again_is_copied() -> None:
    """h = silu(x); x + down(h) in place, but x is wanted once more: only a copy may be written."""
    module = block_with(lambda b, x: b.add("mul", linear(b, b.add("silu", x), x), x))
    (block,) = make_plan(module).blocks
    (product,) = [o for o in block.operations if o.kind == "linear"]
    assert [o.kind for o in block.operations].count("copy") == 1
    assert block.x not in product.writes


def test_what_is_no_chain_of_layers_is_refused() -> None:
    module = tiny_module()
    module.main.replace_node("layer_1", inputs=("embedded",))
    with pytest.raises(InputError, match="layer_1 does not read layer_0"):
        make_plan(module)


def test_ops_without_a_kernel_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"no kernel for the op softmax yet \(block: softmax\)"):
        make_plan(block_with(lambda b, x: b.add("softmax", x)))


def test_functions_of_two_activations_are_refused() -> None:
    module = block_with(lambda b, x: b.add("add", x, b.input("y", TensorType(("n", 4)))))
    with pytest.raises(InputError, match="one input of activations; block has x, y"):
        make_plan(module)


def test_rotated_values_are_for_attention_alone() -> None:
    def build(block: Function, x: str) -> str:
        positions = block.input("positions", TensorType(("n",), "i32"))
        return block.add("silu", block.add("rope", x, positions, head_dim=4, table=RopeTable((1.0, 0.5))))

    with pytest.raises(InputError, match="reads rope, whose heads are rotated or normed"):
        make_plan(block_with(build))


def test_every_op_has_a_lowering_unless_it_has_no_kernel_on_purpose() -> None:
    assert set(LOWERINGS) == {name for name, op in OPS.items() if op.kernel}
