"""Memory plans: live buffers never overlap, whatever the graph; the arena stays small."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import smc
from smc.codegen.kernels.abi import Form
from smc.codegen.memory import ARENA_LIMIT, MemoryPlan, plan_memory, width_of
from smc.codegen.plan import Buffer, FunctionPlan, Plan
from smc.codegen.planner import make_plan
from smc.ir import Function
from smc.passes import FUSIONS, QuantizeRTN, apply
from tests.codegen.modules import block_with, different_widths, mixed_bits, random_blocks

MakeCheckpoint = Callable[..., tuple[Path, Any]]


def form_bytes(form: Form, tokens: int, width: int) -> list[int]:
    """Bytes of values, or of codes, scales and sums."""
    if form.kind == "f32":
        return [4 * tokens * width]
    groups = 1 if form.group == "token" else width // form.group
    return [tokens * width, 4 * tokens * groups, 4 * tokens * (width // form.sum_group)]


def ranges(plan: Plan, memory: MemoryPlan, function: FunctionPlan, buffer: Buffer) -> list[tuple[int, int]]:
    """The bytes [begin, end) of the arena that a buffer has."""
    if buffer is function.x and function is not plan.head:
        return [(memory.x[0], memory.x[0] + 4 * memory.tokens * width_of(plan, function, buffer.width))]
    if buffer is function.result:
        if function is plan.head:
            return []  # the caller's memory
        return [(memory.x[-1], memory.x[-1] + 4 * memory.tokens * width_of(plan, function, buffer.width))]
    if buffer.chained:
        return []  # a thread's scratch
    found = []
    for form in buffer.forms:
        place = memory.places[function.name, buffer, form]
        sizes = form_bytes(form, memory.tokens, width_of(plan, function, buffer.width))
        found += [(start, start + size) for start, size in zip((place.data, place.scales, place.sums), sizes)]  # noqa: B905
    return found


def check(plan: Plan, memory: MemoryPlan) -> None:
    """From the phase that first touches it to the one that last does, a buffer shares no byte with another."""
    for function in plan.functions():
        live: dict[Buffer, list[int]] = {}
        for number, phase in enumerate(function.phases):
            for task in phase:
                for buffer in [b for part in task.kernels() for b in (*part.inputs, part.output) if b is not None]:
                    live.setdefault(buffer, []).append(number)
                    if task.private or task.joins is not None:  # in some steps it runs in the next phase
                        live[buffer].append(number + 1)
        if function.x is not None:
            live.setdefault(function.x, []).append(-1)
        live.setdefault(function.result, []).append(len(function.phases))
        for one, other in itertools.combinations(live, 2):
            if min(live[one]) > max(live[other]) or min(live[other]) > max(live[one]):
                continue
            for begin, end in ranges(plan, memory, function, one):
                assert begin % 64 == 0 and end <= memory.arena_bytes
                for b, e in ranges(plan, memory, function, other):
                    assert end <= b or e <= begin, (function.name, one.value, other.value)


def check_order(plan: Plan) -> None:
    """Within a phase nobody writes what another task of that phase touches."""
    for function in plan.functions():
        for phase in function.phases:
            for one, other in itertools.permutations(phase, 2):
                written = [p.output if p.output is not None else p.inputs[0] for p in one.kernels()]  # rope: q in place
                touched = [b for part in other.kernels() for b in (*part.inputs, part.output)]
                assert not set(written) & set(touched), (function.name, one.kind, other.kind)


def check_private(plan: Plan) -> None:
    """What every thread makes for itself is read in the next phase only, whose tasks leave its inputs alone."""
    for function in plan.functions():
        for number, phase in enumerate(function.phases):
            for task in phase:
                assert task.joins is None or (phase == [task] and task.joins in function.phases[number + 1])
                if not task.private:
                    continue
                assert phase == [task] and task.output is not None and task.output.private
                readers = [n for n, p in enumerate(function.phases) for t in p if task.output in t.inputs]
                assert set(readers) == {number + 1}
                written = [part.output for t in function.phases[number + 1] for part in t.kernels()]
                assert not set(task.inputs) & set(written)


MIXED = ["quantize-rtn:bits=8,group=16,include=v_proj", "convert:dtype=f16"]


@pytest.mark.parametrize("chain", [["convert:dtype=f32"], ["quantize-rtn:bits=4"], MIXED], ids=["f32", "int4", "mixed"])
@pytest.mark.parametrize("fusions", [(), FUSIONS], ids=["plain", "fused"])
def test_layers(make_checkpoint: MakeCheckpoint, chain: list[str], fusions: Any) -> None:
    module = smc.load_checkpoint(make_checkpoint(attention_bias=True)[0])
    plan = make_plan(apply(module, [*chain, *fusions]))
    check(plan, plan_memory(plan))
    check_order(plan)
    check_private(plan)


def test_widths_and_bits_that_differ(make_checkpoint: MakeCheckpoint) -> None:
    module = smc.load_checkpoint(make_checkpoint(num_hidden_layers=6)[0])
    plan = make_plan(apply(mixed_bits(different_widths(module, [80, 33, 64, 1, 79, 32]), 6), FUSIONS))
    check(plan, plan_memory(plan))
    check_order(plan)
    check_private(plan)


def test_wide_models_take_shorter_steps(make_checkpoint: MakeCheckpoint) -> None:
    small, wide = (
        make_plan(smc.load_checkpoint(make_checkpoint(intermediate_size=width, num_hidden_layers=1)[0]))
        for width in (80, 50_000)
    )
    assert plan_memory(small).tokens == 512
    memory = plan_memory(wide)
    assert memory.tokens < 512 and memory.arena_bytes <= ARENA_LIMIT
    check(wide, memory)


@settings(deadline=None)
@given(random_blocks(), st.booleans(), st.booleans())
def test_random_blocks(build: Callable[[Function, str], str], quantized: bool, fused: bool) -> None:
    module = block_with(build)
    chain = [*([QuantizeRTN(bits=8, include=("square",))] if quantized else []), *(FUSIONS if fused else ())]
    plan = make_plan(apply(module, chain))
    check(plan, plan_memory(plan))
    check_order(plan)
    check_private(plan)
