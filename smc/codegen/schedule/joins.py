"""Joins: attention writes keys and values into the cache itself, in steps in which no other block of it reads them.

That saves a phase, and so a barrier, in decoding: there a tile of tokens is alone in its sequence, and the block that
attends to the cache for a KV head is the only one that reads what the tile adds for it.

Gain: a step that decodes one token has 152 barriers in place of 182, one less per layer (SmolLM2-135M, int4-plain).
With two threads no gain in time was measured (`python -m benchmarks.fast_paths MODEL joins --rounds 200`).
"""

from __future__ import annotations

from dataclasses import replace

from smc.codegen.plan.domains import CacheWrites, Splits
from smc.codegen.schedule.schedule import Condition, FunctionSchedule, Schedule, Task
from smc.codegen.schedule.traits import Traits


def joins(schedule: Schedule) -> Schedule:
    """Attention joins a write that is a phase of its own, right before it."""
    return schedule.change(_function)


def _function(function: FunctionSchedule, traits: Traits) -> FunctionSchedule:
    phases = list(function.phases)
    for number, following in enumerate(phases[1:], 1):
        [write, *others] = phases[number - 1].tasks
        if others or not isinstance(write.blocks, CacheWrites) or phases[number - 1].first:
            continue  # what threads make for themselves before the write would be left out with its phase
        tasks = tuple(
            replace(task, joined=write) if _attends_to(task, write) else task for task in following.tasks
        )
        if tasks != following.tasks:
            phases[number - 1] = replace(phases[number - 1], condition=Condition.NOT_JOINED)
            phases[number] = replace(following, tasks=tasks)
    return replace(function, phases=tuple(phases))


def _attends_to(task: Task, write: Task) -> bool:
    return isinstance(task.blocks, Splits) and write.operations[0] in task.operations[0].after
