"""Plans: what calls share, and which tasks a function has in which phases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import smc
from smc.codegen.plan import FunctionPlan, linear_kernels
from smc.codegen.planner import make_plan
from smc.errors import InputError
from smc.ir import Module
from smc.passes import FUSIONS, apply
from tests.codegen.modules import block_with, different_widths, linear, mixed_bits
from tests.ir.models import tiny_module

MakeCheckpoint = Callable[..., tuple[Path, Any]]


def planned(module: Module, passes: list[str] | None = None) -> Any:
    return make_plan(apply(module, [*(passes or []), *FUSIONS]))


def text(function: FunctionPlan) -> list[str]:
    """A line a phase: the tasks, the slots they read, where they add in place, the form that linears take."""

    def task_text(task: Any) -> str:
        words = [task.kind, task.slot, f"of {task.input_form}" if task.kind in ("linear", "quantize") else None]
        forms = [str(form) for form in task.kernel.forms] if hasattr(task.kernel, "forms") else []
        words += [*forms, "in place" if task.accumulate else None, "private" if task.private else None]
        return " ".join([word for word in words if word])

    return [", ".join(" + ".join(map(task_text, t.kernels())) for t in phase) for phase in function.phases]


def test_the_phases_of_a_layer(make_checkpoint: MakeCheckpoint) -> None:
    plan = planned(smc.load_checkpoint(make_checkpoint()[0]), ["quantize-rtn:bits=4"])
    (block,) = plan.blocks
    assert text(block) == [
        "rms_norm input_layernorm i8_g32_s32 private",
        "linear q_proj of i8_g32_s32, linear k_proj of i8_g32_s32, linear v_proj of i8_g32_s32",
        "rope_cache",
        "attention",
        "merge",
        "quantize of i8_g32_s32 i8_g32_s32 private",
        "linear o_proj of i8_g32_s32 in place",
        "rms_norm post_attention_layernorm i8_g32_s32 private",
        "linear gate_proj of i8_g32_s32 + linear up_proj of i8_g32_s32 + gated_silu i8_g32_s32",
        "linear down_proj of i8_g32_s32 in place",
    ]
    assert text(plan.embed) == ["embedding embed_tokens"]
    assert text(plan.head) == ["rms_norm norm i8_g32_s32 private", "linear lm_head of i8_g32_s32"]
    assert block.in_place


def test_where_tokens_are_by_themselves(make_checkpoint: MakeCheckpoint) -> None:
    """What follows attention needs its result and the residual of the tokens that count, not of the others."""
    module = smc.load_checkpoint(make_checkpoint()[0])
    for plan in (planned(module, ["quantize-rtn:bits=4"]), planned(module), make_plan(module)):
        (block,) = plan.blocks
        tail = block.tail()
        assert plan.last is block
        assert [task.kind for task in block.phases[tail.phase - 1]] == ["merge"]
        assert [buffer.value for buffer in tail.buffers] == ["attention", block.x.value]
        assert [task.slot or task.kind for task in block.before_tail()] == ["merge", "attention", "q_proj"]
        assert plan.embed.tail().phase == 1  # it reads the step's ids


def test_a_tail_begins_with_floats(make_checkpoint: MakeCheckpoint) -> None:
    """Codes are not moved, arm64 interleaves them: where a norm's are read behind attention, too, the tail is later."""
    (block,) = make_plan(block_with(lambda b, x: b.add("mul", linear(b, b.add("silu", x), x), x))).blocks
    assert (block.tail().phase, block.tail().buffers) == (0, [block.x])
    (block,) = planned(smc.load_checkpoint(make_checkpoint()[0]), ["quantize-rtn:bits=4"]).blocks
    norm, down = block.phases[0][0].output, block.phases[-1][0]
    assert norm is not None
    down.inputs.append(norm)
    assert (block.tail().phase, block.tail().buffers) == (len(block.phases), [block.result])
    assert block.before_tail() == []


def test_every_form_that_is_read_is_made(make_checkpoint: MakeCheckpoint) -> None:
    """One norm for readers of floats, and of codes with sums over 16 and over 32."""
    chain = ["quantize-rtn:bits=8,group=16,include=v_proj", "quantize-rtn:bits=8,exclude=k_proj"]
    (block,) = planned(smc.load_checkpoint(make_checkpoint()[0]), chain).blocks
    assert text(block)[:2] == [
        "rms_norm input_layernorm f32 i8_g32_s16 i8_g32_s32 private",
        "linear q_proj of i8_g32_s32, linear k_proj of f32, linear v_proj of i8_g32_s16",
    ]


def test_who_rounds_whole_tokens(make_checkpoint: MakeCheckpoint) -> None:
    """A norm has a token's columns together, attention and a chain of linears have not."""
    (block,) = planned(smc.load_checkpoint(make_checkpoint()[0]), ["quantize-rtn:bits=8,activation_group=token"]).blocks
    assert [phase for phase in text(block) if not phase.startswith("linear")] == [
        "rms_norm input_layernorm i8_gtoken_s32 private",
        "rope_cache",
        "attention",
        "merge",
        "quantize of i8_gtoken_s32 private",
        "rms_norm post_attention_layernorm i8_gtoken_s32 private",
        "quantize of i8_gtoken_s32 private",
    ]


def test_unfused_layers_have_more_phases(make_checkpoint: MakeCheckpoint) -> None:
    module = smc.load_checkpoint(make_checkpoint()[0])
    plain, fused = make_plan(module).blocks[0], planned(module).blocks[0]
    assert [phase for phase in text(plain) if "linear gate_proj of f32 + silu f32" in phase]
    assert len(plain.phases) > len(fused.phases)
    assert not plain.in_place


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
    assert [str(kernel.encoding) for kernel in linear_kernels(plan)] == ["int8.g32", "int4.g32"]


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
    tasks = [task for phase in block.phases for task in phase]
    (product,) = [task for task in tasks if task.kind == "linear"]
    assert [task.kind for task in tasks].count("copy") == 1
    assert product.output is not block.x


def test_what_is_no_chain_of_layers_is_refused() -> None:
    module = tiny_module()
    module.main.replace_node("layer_1", inputs=("embedded",))
    with pytest.raises(InputError, match="layer_1 does not read layer_0"):
        make_plan(module)
