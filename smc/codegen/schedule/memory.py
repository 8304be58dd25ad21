"""Memory of a schedule: the place in the arena of every buffer of a function while it is needed."""

from __future__ import annotations

from dataclasses import dataclass

from smc.codegen.kernels.layout import padded
from smc.codegen.plan.arguments import Buffer
from smc.codegen.plan.work import padded_width
from smc.codegen.schedule.places import ALIGNMENT, Place, buffer_bytes, place_of
from smc.codegen.schedule.schedule import FunctionSchedule, Schedule
from smc.codegen.schedule.scratch import scratch_bytes


@dataclass
class MemoryPlan:
    """Places of all buffers for steps of at most `tokens` tokens; `x` are the buffers between functions.

    scratch_bytes: of a thread's scratch, what buffers take at most.
    """

    tokens: int
    arena_bytes: int
    x: list[int]
    places: dict[Buffer, Place]
    scratch_bytes: int


def plan_memory(schedule: Schedule) -> MemoryPlan:
    """The longest steps that keep the arena within the device's limit."""
    for tokens in schedule.traits.step_tokens:
        memory = _plan_for(schedule, tokens)
        if memory.arena_bytes <= schedule.traits.arena_limit:
            break
    return memory


def _plan_for(schedule: Schedule, tokens: int) -> MemoryPlan:
    plan = schedule.plan
    row = padded(tokens * padded_width(plan.hidden) * 4, ALIGNMENT)
    count = 1 if all(f.in_place for f in plan.blocks) else 2
    places: dict[Buffer, Place] = {}
    end = common = row * count
    for function in schedule.functions:
        end = max(end, common + _plan_function(schedule, function, tokens, common, places))
    scratch = max(scratch_bytes(schedule, function) for function in schedule.functions)
    return MemoryPlan(tokens, end, [row * i for i in range(count)], places, scratch)


def _plan_function(
    schedule: Schedule, function: FunctionSchedule, tokens: int, base: int, places: dict[Buffer, Place]
) -> int:
    """First fit by first use: a place is free again in the phase after its last use. Returns the bytes used."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for number, phase in enumerate(function.phases):
        for buffer in phase.buffers():
            lives[buffer] = (lives.get(buffer, (number, number))[0], number)
    local, x = function.buffers(), function.plan.x
    if function is schedule.head and x is not None:
        local.append(x)  # the gathered rows
        lives[x] = (-1, lives[x][1])
    taken: list[tuple[int, int, int, int]] = []  # first phase, last phase, begin, end
    for buffer in sorted(local, key=lambda b: lives[b]):
        first, last = lives[buffer]
        rows = tokens * buffer.rows
        parts = buffer_bytes(buffer.form, rows, schedule.plan.width_of(function.plan, buffer))
        size, offset = sum(parts), 0
        for begin, end in sorted((b, e) for since, until, b, e in taken if not (until < first or last < since)):
            if offset + size <= begin:
                break
            offset = max(offset, end)
        taken.append((first, last, offset, offset + size))
        places[buffer] = place_of(parts, base + offset)
    return max((end for *_, end in taken), default=0)
