"""Memory plans: live buffers never overlap, whatever the graph and the fast paths; the arena stays small."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import smc
from smc.codegen.cpu.backend import CPU_TRAITS
from smc.codegen.kernels.abi import Form
from smc.codegen.plan.arguments import Buffer
from smc.codegen.plan.domains import CacheWrites
from smc.codegen.plan.planner import make_plan
from smc.codegen.schedule.fast_paths import FAST_PATHS, make_schedule
from smc.codegen.schedule.memory import MemoryPlan, plan_memory
from smc.codegen.schedule.schedule import FunctionSchedule, Schedule
from smc.codegen.schedule.scratch import chain_places, private_places
from smc.ir import Function, Module
from smc.passes import FUSIONS, QuantizeRTN, apply
from tests.codegen.modules import block_with, different_widths, mixed_bits, random_blocks

MakeCheckpoint = Callable[..., tuple[Path, Any]]


def form_bytes(form: Form, tokens: int, width: int) -> list[int]:
    """Bytes of values, or of codes, scales and sums."""
    if form.kind == "f32":
        return [4 * tokens * width]
    groups = 1 if form.group == "token" else width // form.group
    return [tokens * width, 4 * tokens * groups, 4 * tokens * (width // form.sum_group)]


def ranges(schedule: Schedule, memory: MemoryPlan, function: FunctionSchedule, buffer: Buffer) -> list[tuple[int, int]]:
    """The bytes [begin, end) of the arena that a buffer has."""
    width = schedule.plan.width_of(function.plan, buffer)
    head = function is schedule.head
    if buffer is function.plan.x and not head:
        return [(memory.x[0], memory.x[0] + 4 * memory.tokens * width)]
    if buffer is function.plan.result:
        # The head's is the caller's memory.
        return [] if head else [(memory.x[-1], memory.x[-1] + 4 * memory.tokens * width)]
    place = memory.places[buffer]
    sizes = form_bytes(buffer.form, memory.tokens, width)
    return [(start, start + size) for start, size in zip((place.data, place.scales, place.sums), sizes, strict=False)]


def check(schedule: Schedule, memory: MemoryPlan) -> None:
    """From the phase that first touches it to the one that last does, a buffer shares no byte with another."""
    for function in schedule.functions:
        live: dict[Buffer, list[int]] = {}
        for number, phase in enumerate(function.phases):
            others = [phase.first] if phase.first else []
            others += [task.joined for task in phase.tasks if task.joined]
            for task in [*phase.tasks, *others]:
                for buffer in [*task.reads, *task.writes]:
                    live.setdefault(buffer, []).append(number)
        if function.plan.x is not None:
            live.setdefault(function.plan.x, []).append(-1)
        live.setdefault(function.plan.result, []).append(len(function.phases))
        for one, other in itertools.combinations(live, 2):
            if min(live[one]) > max(live[other]) or min(live[other]) > max(live[one]):
                continue
            for begin, end in ranges(schedule, memory, function, one):
                assert begin % 64 == 0 and end <= memory.arena_bytes
                for b, e in ranges(schedule, memory, function, other):
                    assert end <= b or e <= begin, (function.plan.name, one.value, other.value)


def check_scratch(schedule: Schedule, memory: MemoryPlan) -> None:
    """A thread's private results and those of chains don't overlap, and fit."""
    traits = schedule.traits
    for function in schedule.functions:
        private = [0]
        for task in function.private():
            for buffer, place in private_places(schedule, function, task).items():
                width = schedule.plan.width_of(function.plan, buffer)
                sizes = form_bytes(buffer.form, traits.private_tokens, width)
                starts = (place.data, place.scales, place.sums)
                private += [start + size for start, size in zip(starts, sizes, strict=False)]
        for chain in function.chains():
            places = sorted(chain_places(schedule, function, chain).values())
            ends = [place + 4 * traits.chain_floats for place in places]
            assert places[0] >= max(private)
            assert all(end <= begin for end, begin in itertools.pairwise(sorted([*places, *ends])[1:]) if end in ends)
            assert ends[-1] <= memory.scratch_bytes
        assert max(private) <= memory.scratch_bytes


def check_order(schedule: Schedule) -> None:
    """Within a phase nobody writes what another task of that phase touches; what is read was written before."""
    for function in schedule.functions:
        written = {function.plan.x}
        for phase in function.phases:
            for one, other in itertools.permutations(phase.tasks, 2):
                assert not set(one.writes) & set(other.buffers()), function.plan.name
            for task in phase.tasks:
                assert set(task.reads) <= written
            written |= {buffer for task in phase.tasks for buffer in task.writes}


def check_private(schedule: Schedule) -> None:
    """What every thread makes for itself is read in the next phase only, whose tasks leave its inputs alone; what
    attention joins is the phase before it."""
    for function in schedule.functions:
        for before, phase in itertools.pairwise(function.phases):
            for task in phase.tasks:
                if task.joined:
                    assert before.tasks == (task.joined,) and isinstance(task.joined.blocks, CacheWrites)
            if phase.first is None:
                continue
            assert before.tasks == (phase.first,) and before.first is None
            for buffer in phase.first.writes:
                assert set(function.readers(buffer)) <= set(phase.tasks)
            assert not {b for task in phase.tasks for b in task.writes} & set(phase.first.reads)


def check_all(module: Module, without: tuple[str, ...] = ()) -> Schedule:
    schedule = make_schedule(make_plan(module), CPU_TRAITS, without)
    memory = plan_memory(schedule)
    check(schedule, memory)
    check_scratch(schedule, memory)
    check_order(schedule)
    check_private(schedule)
    return schedule


MIXED = ["quantize-rtn:bits=8,group=16,include=v_proj", "convert:dtype=f16"]


@pytest.mark.parametrize("chain", [["convert:dtype=f32"], ["quantize-rtn:bits=4"], MIXED], ids=["f32", "int4", "mixed"])
@pytest.mark.parametrize("fusions", [(), FUSIONS], ids=["plain", "fused"])
def test_layers(make_checkpoint: MakeCheckpoint, chain: list[str], fusions: Any) -> None:
    module = smc.load_checkpoint(make_checkpoint(attention_bias=True)[0])
    for without in ((), *((name,) for name in FAST_PATHS), tuple(FAST_PATHS)):
        check_all(apply(module, [*chain, *fusions]), without)


def test_widths_and_bits_that_differ(make_checkpoint: MakeCheckpoint) -> None:
    module = smc.load_checkpoint(make_checkpoint(num_hidden_layers=6)[0])
    check_all(apply(mixed_bits(different_widths(module, [80, 33, 64, 1, 79, 32]), 6), FUSIONS))


def test_wide_models_take_shorter_steps(make_checkpoint: MakeCheckpoint) -> None:
    small, wide = (
        check_all(smc.load_checkpoint(make_checkpoint(intermediate_size=width, num_hidden_layers=1)[0]))
        for width in (80, 50_000)
    )
    assert plan_memory(small).tokens == 512
    memory = plan_memory(wide)
    assert memory.tokens < 512 and memory.arena_bytes <= CPU_TRAITS.arena_limit


@settings(deadline=None)
@given(random_blocks(), st.booleans(), st.booleans(), st.sets(st.sampled_from(sorted(FAST_PATHS))))
def test_random_blocks(
    build: Callable[[Function, str], str], quantized: bool, fused: bool, without: set[str]
) -> None:
    module = block_with(build)
    chain = [*([QuantizeRTN(bits=8, include=("square",))] if quantized else []), *(FUSIONS if fused else ())]
    check_all(apply(module, chain), tuple(without))
