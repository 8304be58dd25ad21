"""Scratch of a schedule: where in a thread's own memory its private results and those of chains lie."""

from __future__ import annotations

from smc.codegen.kernels.layout import padded
from smc.codegen.plan.arguments import Buffer
from smc.codegen.schedule.places import ALIGNMENT, Place, buffer_bytes, place_of
from smc.codegen.schedule.schedule import FunctionSchedule, Schedule, Task


def private_places(schedule: Schedule, function: FunctionSchedule, task: Task) -> dict[Buffer, Place]:
    """Where the results of a private task lie. There is only one at a time, so all begin at 0."""
    places, offset = {}, 0
    for buffer in task.writes:
        parts = _private_parts(schedule, function, buffer)
        places[buffer] = place_of(parts, offset)
        offset += sum(parts)
    return places


def chain_places(schedule: Schedule, function: FunctionSchedule, chain: Task) -> dict[Buffer, int]:
    """Where lies what each linear of a chain leaves: behind the function's private results."""
    begin = _private_bytes(schedule, function)
    return {buffer: begin + 4 * schedule.traits.chain_floats * place for place, buffer in enumerate(chain.inner)}


def scratch_bytes(schedule: Schedule, function: FunctionSchedule) -> int:
    """Bytes that a function's buffers take of a thread's scratch."""
    ends = [
        place + 4 * schedule.traits.chain_floats
        for chain in function.chains()
        for place in chain_places(schedule, function, chain).values()
    ]
    return max([_private_bytes(schedule, function), *ends])


def _private_bytes(schedule: Schedule, function: FunctionSchedule) -> int:
    sizes = (
        sum(sum(_private_parts(schedule, function, buffer)) for buffer in task.writes) for task in function.private()
    )
    return padded(max(sizes, default=0), ALIGNMENT)


def _private_parts(schedule: Schedule, function: FunctionSchedule, buffer: Buffer) -> list[int]:
    width = schedule.plan.width_of(function.plan, buffer)
    return buffer_bytes(buffer.form, schedule.traits.private_tokens, width)
