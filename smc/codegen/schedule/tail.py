"""The last layer's tail: it runs only for tokens whose output was requested.

Most tokens of a prompt need only keys and values. So the last call before the head gathers the rows of requested tokens
as soon as operations treat tokens separately, and continues with them. Earlier queries and attention, which serve only
these, are computed only for tiles with requested tokens.

Gain: a prompt with one requested token computes about 1 / layers less: 3 to 4.5 % of SmolLM2-135M's time, int4-plain,
two threads (`python -m benchmarks.fast_paths MODEL tail --rounds 200`).
"""

from __future__ import annotations

from dataclasses import replace

from smc.codegen.kernels.abi import F32_FORM
from smc.codegen.plan.arguments import Buffer, StepField
from smc.codegen.plan.domains import Merges, Rows, Splits
from smc.codegen.schedule.schedule import FunctionSchedule, Gather, Schedule, Task
from smc.codegen.schedule.traits import Traits


def tail(schedule: Schedule) -> Schedule:
    """Gather as early as possible, and narrow the tasks before."""
    return schedule.change(_function)


def _function(function: FunctionSchedule, traits: Traits) -> FunctionSchedule:
    if function.gather is None:
        return function
    gather = earliest_gather(function)
    return replace(function, gather=gather, narrow=frozenset(_before(function, gather.phase)))


def earliest_gather(function: FunctionSchedule) -> Gather:
    """Where the phases begin in which each token is by itself, and that read only floats of earlier ones: codes are
    not moved, because some machines interleave those of several tokens, nor are the rows of experts."""
    assert function.gather is not None
    gather = function.gather
    for number in reversed(range(len(function.phases))):
        phases = function.phases[number:]
        if not all(_is_by_token(task) for task in phases[0].tasks):
            break
        before = {buffer for phase in function.phases[:number] for buffer in phase.buffers()} | {function.plan.x}
        read = dict.fromkeys(buffer for phase in phases for task in phase.tasks for buffer in task.reads)
        buffers = tuple(b for b in dict.fromkeys([*read, function.plan.result]) if b in before)
        if phases[0].first is None and all(_is_row_of_floats(buffer) for buffer in buffers):
            gather = Gather(number, buffers)
    return gather


def _is_row_of_floats(buffer: Buffer) -> bool:
    """Whether a token has one row, which can be moved."""
    return buffer.form == F32_FORM and buffer.routing is None


def _is_by_token(task: Task) -> bool:
    """Whether it takes the rows of any tokens for itself, and nothing else of the step."""
    arguments = (argument for call in task.calls for argument in call.arguments.values())
    return task.blocks.by_token and not any(isinstance(argument, StepField) for argument in arguments)


def _before(function: FunctionSchedule, end: int) -> list[Task]:
    """What is made in front of a phase for the phases from it on alone, tile by tile: attention, and queries."""
    readers: dict[Buffer, list[Task | None]] = {}
    for number, phase in enumerate(function.phases):
        for task in phase.tasks:
            for buffer in task.reads:
                readers.setdefault(buffer, []).extend([task] if number < end else [])
    found: list[Task] = []
    for task in (task for phase in reversed(function.phases[:end]) for task in phase.tasks):
        # Linears take the rows of any tokens; attention and merges get the tiles.
        by_tile = isinstance(task.blocks, Splits | Merges | Rows) and not task.is_chain
        if by_tile and not task.operations[0].updates and all(
            buffer in readers and all(reader in found for reader in readers[buffer]) for buffer in task.writes
        ):
            found.append(task)
    return found
