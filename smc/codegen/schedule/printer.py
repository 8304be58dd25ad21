"""A schedule as text, for people (`smc compile --emit schedule`)."""

from __future__ import annotations

from collections.abc import Iterator

from smc.codegen.plan.plan import kernel_text
from smc.codegen.plan.printer import arguments_text
from smc.codegen.schedule.schedule import Call, FunctionSchedule, Phase, Schedule, Task


def print_schedule(schedule: Schedule) -> str:
    """Every function with its phases: their tasks, and what fast paths do with them."""
    return "\n".join("\n".join(_function(function)) + "\n" for function in schedule.functions)


def _function(function: FunctionSchedule) -> Iterator[str]:
    yield f"{function.plan.name}: {len(function.phases)} phases"
    for number, phase in enumerate(function.phases):
        if function.gather and function.gather.phase == number:
            yield _gather(function)
        yield f"  phase {number}{_facts(phase)}"
        for task in phase.tasks:
            yield from (f"    {line}" for line in task_lines(task, task in function.narrow))
    if function.gather and function.gather.phase == len(function.phases):
        yield _gather(function)


def _gather(function: FunctionSchedule) -> str:
    assert function.gather is not None
    buffers = ", ".join(map(str, function.gather.buffers))
    return f"  in the last call: gather the requested tokens' rows of {buffers}"


def _facts(phase: Phase) -> str:
    facts = [f"in {phase.condition.value}"] if phase.condition else []
    if phase.first:
        facts.append(f"begins with {task_name(phase.first)} in other steps")
    if phase.prefetches:
        facts.append("prefetches weights")
    facts += [f"prefetches the cache of {shape.kv_heads} KV heads" for shape in phase.prefetched_caches]
    return ": " + ", ".join(facts) if facts else ""


def task_name(task: Task) -> str:
    """What a task is called: after its calls."""
    return " + ".join(str(call.operation) for call in task.calls)


def task_lines(task: Task, narrow: bool = False) -> Iterator[str]:
    """A task: a line for it, and one for each of its calls."""
    facts = [f"by {task.blocks}"]
    if task.is_chain:
        facts.append(f"{task.rows_at_once} rows at once")
    if task.joined:
        facts.append(f"joins {task_name(task.joined)}")
    if narrow:
        facts.append("in the last call for requested tiles")
    yield f"{task_name(task)}: {', '.join(facts)}"
    for call in task.calls:
        yield f"  {_call(call)}"
    if task.argmax:
        yield f"  or {_call(task.argmax)}"


def _call(call: Call) -> str:
    return f"{kernel_text(call.kernel)}({arguments_text(call.arguments)})"
