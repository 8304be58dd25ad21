"""Schedules: which tasks a function has in which phases, with all fast paths and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import smc
from smc.codegen.cpu.backend import CPU_TRAITS
from smc.codegen.plan.arguments import Activation
from smc.codegen.plan.plan import Plan
from smc.codegen.plan.planner import make_plan
from smc.codegen.schedule.fast_paths import FAST_PATHS, make_schedule
from smc.codegen.schedule.printer import print_schedule
from smc.codegen.schedule.schedule import Call, Condition, FunctionSchedule, Schedule, Task
from smc.codegen.schedule.tail import earliest_gather, tail
from smc.errors import InputError
from smc.ir import Function, Module
from smc.passes import FUSIONS, apply
from tests.codegen.modules import block_with, linear
from tests.ir.models import parameter

MakeCheckpoint = Callable[..., tuple[Path, Any]]


def scheduled(module: Module, passes: list[str] | None = None, without: tuple[str, ...] = ()) -> Schedule:
    return make_schedule(make_plan(apply(module, [*(passes or []), *FUSIONS])), CPU_TRAITS, without)


def block_of(schedule: Schedule) -> FunctionSchedule:
    (plan,) = schedule.plan.blocks
    return schedule.of(plan)


def text(function: FunctionSchedule) -> list[str]:
    """A line per phase: the tasks, the forms that linears read and others make, where they add in place."""
    private = function.private()

    def call_text(call: Call) -> str:
        x = call.arguments.get("x")
        words = [call.operation.kind, call.operation.slots[0] if call.operation.slots else ""]
        words += [f"of {x.buffer.form}"] if isinstance(x, Activation) and "linear" in words else []
        words += [str(form) for form in getattr(call.kernel, "forms", ())]
        return " ".join([word for word in words if word] + (["in place"] if call.operation.updates else []))

    def task_text(task: Task) -> str:
        return " + ".join(map(call_text, task.calls)) + (" private" if task in private else "")

    return [", ".join(map(task_text, phase.tasks)) for phase in function.phases]


def test_the_phases_of_a_layer(make_checkpoint: MakeCheckpoint) -> None:
    schedule = scheduled(smc.load_checkpoint(make_checkpoint()[0]), ["quantize-rtn:bits=4"])
    assert text(block_of(schedule)) == [
        "rms_norm input_layernorm i8_g32_s32 private",
        "linear q_proj of i8_g32_s32, linear k_proj of i8_g32_s32, linear v_proj of i8_g32_s32",
        "rope_cache",
        "attention",
        "merge",
        "quantize i8_g32_s32 private",
        "linear o_proj of i8_g32_s32 in place",
        "rms_norm post_attention_layernorm i8_g32_s32 private",
        "linear gate_proj of i8_g32_s32 + linear up_proj of i8_g32_s32 + gated_silu i8_g32_s32",
        "linear down_proj of i8_g32_s32 in place",
    ]
    assert text(schedule.functions[0]) == ["embedding embed_tokens"]
    assert text(schedule.head) == ["rms_norm norm i8_g32_s32 private", "linear lm_head of i8_g32_s32"]


def test_the_straight_schedule_has_a_task_per_operation(make_checkpoint: MakeCheckpoint) -> None:
    module = smc.load_checkpoint(make_checkpoint()[0])
    schedule = scheduled(module, ["quantize-rtn:bits=4,activation_group=128"], tuple(FAST_PATHS))
    codes = "i8_g128_s32"
    assert text(block_of(schedule)) == [
        f"rms_norm input_layernorm {codes}",
        f"linear q_proj of {codes}, linear k_proj of {codes}, linear v_proj of {codes}",
        "rope_cache",
        "attention",
        "merge",
        "quantize",
        f"linear o_proj of {codes} in place",
        f"rms_norm post_attention_layernorm {codes}",
        f"linear gate_proj of {codes}, linear up_proj of {codes}",
        "gated_silu f32",
        "quantize",
        f"linear down_proj of {codes} in place",
    ]
    phases = [phase for function in schedule.functions for phase in function.phases]
    assert {phase.condition for phase in phases} == {None, Condition.SPLIT_CACHE}
    assert not any(phase.first or phase.prefetches or phase.prefetched_caches for phase in phases)
    assert not any(task.joined or task.argmax for phase in phases for task in phase.tasks)
    block = block_of(schedule)
    assert block.gather is not None and (block.gather.phase, block.gather.buffers) == (12, (block.plan.result,))


@pytest.mark.parametrize("name", FAST_PATHS)
def test_a_fast_path_alone_leaves_its_traces(make_checkpoint: MakeCheckpoint, name: str) -> None:
    """What each changes, on a layer where all others are off."""
    others = tuple(other for other in FAST_PATHS if other != name)
    schedule = scheduled(smc.load_checkpoint(make_checkpoint()[0]), ["quantize-rtn:bits=4"], others)
    block = block_of(schedule)
    found = {
        "chains": bool(block.chains()),
        "private": bool(block.private()),
        "joins": any(task.joined for task in block.tasks()),
        "tail": bool(block.narrow),
        "argmax": schedule.argmax() is not None,
        "prefetch": all(phase.prefetches for phase in block.phases),
    }
    assert found == {other: other == name for other in FAST_PATHS}


def test_an_unknown_fast_path_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(InputError, match="no fast path 'chain': use one of chains, private"):
        scheduled(smc.load_checkpoint(make_checkpoint()[0]), [], ("chain",))


def test_schedules_can_be_read(make_checkpoint: MakeCheckpoint) -> None:
    """The text names every task and what fast paths do with it."""
    schedule = scheduled(smc.load_checkpoint(make_checkpoint()[0]), ["quantize-rtn:bits=4"])
    text = print_schedule(schedule)
    assert "block: 10 phases" in text and "head: 2 phases" in text
    assert "gate_proj + up_proj + gated_silu of gated_activation: by gate_proj.rows / 32, 32 rows at once" in text
    assert "phase 1: begins with input_layernorm in other steps, prefetches weights" in text
    assert "joins rope_cache of attention" in text
    assert "gather the requested tokens' rows of attention:f32, x:f32" in text
    assert "linear_argmax_int4_g32" in text


def test_where_tokens_are_by_themselves(make_checkpoint: MakeCheckpoint) -> None:
    """What follows attention needs its result and the residual of the tokens that count, not of the others."""
    module = smc.load_checkpoint(make_checkpoint()[0])
    quantized = make_plan(apply(module, ["quantize-rtn:bits=4", *FUSIONS]))
    for plan in (quantized, make_plan(apply(module, FUSIONS)), make_plan(module)):
        block = block_of(make_schedule(plan, CPU_TRAITS))
        assert plan.last is block.plan and block.gather is not None
        before = block.phases[block.gather.phase - 1]
        assert [task.operations[0].kind for task in before.tasks] == ["merge"]
        assert [buffer.value for buffer in block.gather.buffers] == ["attention", block.plan.x.value]
        narrow = [task for task in block.tasks() if task in block.narrow]
        assert [str(task.operations[0]) for task in narrow] == [
            "q_proj",
            "attention of attention",
            "merge of attention",
        ]


def test_a_tail_begins_with_floats(make_checkpoint: MakeCheckpoint) -> None:
    """Codes are not moved, arm64 interleaves them: where a norm's are read behind attention, too, the tail is later."""
    module = block_with(lambda b, x: b.add("mul", linear(b, b.add("silu", x), x), x))
    plain = block_of(make_schedule(make_plan(module), CPU_TRAITS))
    gather = plain.gather
    assert gather is not None and (gather.phase, gather.buffers) == (0, (plain.plan.x,))
    schedule = scheduled(smc.load_checkpoint(make_checkpoint()[0]), ["quantize-rtn:bits=4"], ("tail",))
    block = block_of(schedule)
    [norm] = block.phases[0].tasks
    last = block.phases[-1]
    [down] = last.tasks
    reads_codes = replace(down, calls=(replace(down.calls[0], reads=(*down.calls[0].reads, *norm.writes)),))
    changed = replace(block, phases=(*block.phases[:-1], replace(last, tasks=(reads_codes,))))
    gather = earliest_gather(changed)
    assert (gather.phase, gather.buffers) == (len(block.phases), (block.plan.result,))
    functions = tuple(changed if f is block else f for f in schedule.functions)
    assert block_of(tail(replace(schedule, functions=functions))).narrow == frozenset()


def test_the_embedding_alone_has_no_tail(make_checkpoint: MakeCheckpoint) -> None:
    """It reads the ids of the step, which nobody gathers."""
    plan = make_plan(smc.load_checkpoint(make_checkpoint()[0]))
    embed = make_schedule(Plan(plan.module, plan.embed, [], plan.head, [plan.order[0], plan.order[-1]]), CPU_TRAITS)
    gather = embed.functions[0].gather
    assert gather is not None and gather.phase == 1


def test_who_rounds_whole_tokens(make_checkpoint: MakeCheckpoint) -> None:
    """A norm has a token's columns together, attention and a chain of linears have not."""
    module = smc.load_checkpoint(make_checkpoint()[0])
    block = block_of(scheduled(module, ["quantize-rtn:bits=8,activation_group=token"]))
    assert [phase for phase in text(block) if not phase.startswith("linear")] == [
        "rms_norm input_layernorm i8_gtoken_s32 private",
        "rope_cache",
        "attention",
        "merge",
        "quantize private",
        "rms_norm post_attention_layernorm i8_gtoken_s32 private",
        "quantize private",
    ]


def test_unfused_layers_have_more_phases(make_checkpoint: MakeCheckpoint) -> None:
    module = smc.load_checkpoint(make_checkpoint()[0])
    plain, fused = block_of(make_schedule(make_plan(module), CPU_TRAITS)), block_of(scheduled(module))
    assert [phase for phase in text(plain) if "linear gate_proj of f32 + silu f32" in phase]
    assert len(plain.phases) > len(fused.phases)
    assert not plain.plan.in_place and fused.plan.in_place


def test_a_chain_takes_nothing_that_runs_between_its_linears() -> None:
    """linear(x) and linear(y), where y is made in the place of x: one must be done before that, the other after."""

    def build(block: Any, x: str) -> str:
        first = linear(block, x)
        y = linear(block, block.add("silu", x), x)
        return block.add("mul", first, linear(block, y))

    block = block_of(make_schedule(make_plan(block_with(build)), CPU_TRAITS))
    assert block.chains() == []
    order = [str(task.operations[0]) for task in block.tasks()]
    kinds = [task.operations[0].kind for task in block.tasks()]
    assert kinds == ["linear", "silu", "linear", "linear", "mul"], order


def test_a_private_result_is_made_of_none() -> None:
    """A norm of a norm: the first one is private to the second, which then has a phase of its own in all steps."""

    def build(block: Function, x: str) -> str:
        weights = [block.parameter(name, 4) for name in ("first", "second")]
        for weight in weights:
            x = block.add("rms_norm", x, weight, eps=1e-5)
        return linear(block, x)

    module = block_with(build)
    for layer in range(2):
        call = module.main.node(f"layer_{layer}")
        names = {**call.attributes["parameters"], "first": "norm", "second": "norm"}
        module.main.replace_node(call.name, attributes={**call.attributes, "parameters": names})
    module.parameters["norm"] = parameter("norm", 4)
    block = block_of(make_schedule(make_plan(module), CPU_TRAITS))
    assert text(block) == ["rms_norm first f32 private", "rms_norm second f32", "linear square of f32"]
    assert [phase.condition for phase in block.phases] == [Condition.MANY_TOKENS, None, None]
