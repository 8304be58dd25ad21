"""Private results: in steps of a token or two, each thread computes a norm's result for itself.

That saves a phase, and so a barrier: the next phase begins with it, in every thread's scratch.

Gain: 1 to 5 % of decoding in two runs (SmolLM2-135M, int4-plain, two threads): a step that decodes one token has 152
barriers in place of 243 (`python -m benchmarks.fast_paths MODEL private --rounds 200`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from smc.codegen.plan.arguments import Buffer
from smc.codegen.schedule.schedule import Condition, FunctionSchedule, Phase, Schedule, Task
from smc.codegen.schedule.traits import Traits


def private(schedule: Schedule) -> Schedule:
    """Phases of one repeatable operation, whose result only the next phase reads."""
    return schedule.change(_function)


def _function(function: FunctionSchedule, traits: Traits) -> FunctionSchedule:
    phases = list(function.phases)
    shared = [buffer for buffer in (function.plan.x, function.plan.result) if buffer is not None]
    for number, following in enumerate(phases[1:], 1):
        phase = phases[number - 1]
        # What threads made for themselves before a phase would be left out with it.
        alone = phase.condition is None and phase.first is None
        if alone and (task := _private(function, phase, following, shared)):
            phases[number - 1] = replace(phase, condition=Condition.MANY_TOKENS)
            phases[number] = replace(following, first=task)
    return replace(function, phases=tuple(phases))


def _private(
    function: FunctionSchedule, phase: Phase, following: Phase, shared: Sequence[Buffer]
) -> Task | None:
    """The task of a phase that threads may repeat at the beginning of the next one, because its inputs are not
    changed."""
    [task, *others] = phase.tasks
    if others or not all(operation.repeatable for operation in task.operations):
        return None
    written = {buffer for other in following.tasks for buffer in other.writes}
    for buffer in task.writes:
        if buffer in shared or not set(function.readers(buffer)) <= set(following.tasks):
            return None
    return None if written & set(task.reads) else task
