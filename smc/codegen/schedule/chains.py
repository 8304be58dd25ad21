"""Chains: linears and the element-wise op on their results become one task.

A thread takes the same rows through all of them, without a barrier between: the results stay in its scratch, and need
no room in the arena. A chain also rounds its result in groups of several tiles, for it has these columns together.

Gain: 1 % of a prompt, nothing measurable of decoding (SmolLM2-135M, int4-plain, two threads). A step that decodes one
token has 152 barriers in place of 182, and the activations of a long step take 4.7 MB in place of 8.8
(`python -m benchmarks.fast_paths MODEL chains --rounds 200`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from smc.codegen.kernels.abi import COMPACT, F32_FORM
from smc.codegen.kernels.layout import ROW_BLOCK
from smc.codegen.kernels.specs import ElementwiseKernel, QuantizeTokensKernel
from smc.codegen.plan.arguments import Buffer, Number
from smc.codegen.plan.domains import GroupRows, Groups, Rows
from smc.codegen.plan.lowering import outputs
from smc.codegen.plan.plan import Operation
from smc.codegen.schedule.schedule import Call, FunctionSchedule, Schedule, Task, phases_of
from smc.codegen.schedule.traits import Traits


def chains(schedule: Schedule) -> Schedule:
    """Element-wise ops join the linears whose results only they read."""
    return schedule.change(_function)


def _function(function: FunctionSchedule, traits: Traits) -> FunctionSchedule:
    # In the order of the plan, so that tasks of a phase stay in it.
    order = {operation: place for place, operation in enumerate(function.plan.operations)}
    tasks = sorted(function.tasks(), key=lambda task: order[task.operations[0]])
    for last in list(tasks):
        if linears := _linears(function, tasks, last):
            rounders = [task for task in tasks if _rounds(task, last.writes, traits)]
            chain = _chain(function, tasks, linears, last, rounders)
            # After everything that any of them reads.
            tasks[max(tasks.index(linear) for linear in linears)] = chain
            tasks = [task for task in tasks if task not in (*linears, last, *rounders)]
    phases = phases_of(tasks)
    gather = replace(function.gather, phase=len(phases)) if function.gather else None
    return replace(function, phases=phases, gather=gather)


def _linears(function: FunctionSchedule, tasks: Sequence[Task], last: Task) -> list[Task]:
    """The linears of the chain that a task ends; none if it ends no chain."""
    [call, *others] = last.calls
    if others or not isinstance(call.kernel, ElementwiseKernel) or len(set(call.reads)) < len(call.reads):
        return []
    linears, read = [], call.reads
    if isinstance(last.blocks, Groups):
        read = tuple(buffer for buffer in read if buffer is not last.blocks.routing.groups)
    for buffer in read:
        makers = [task for task in tasks if buffer in task.writes]
        readers = [task for task in tasks if buffer in task.reads]
        if len(makers) != 1 or readers != [last] or buffer is function.plan.result or not _is_linear(makers[0]):
            return []
        linears += makers
    operations = {linear.operations[0] for linear in linears}
    # What one of them needs would have to run between the two.
    if any(_before(operation) & operations for operation in operations):
        return []
    return linears


def _is_linear(task: Task) -> bool:
    return isinstance(task.blocks, Rows | GroupRows) and not task.is_chain and not task.operations[0].updates


def _before(operation: Operation) -> set[Operation]:
    """Everything that must be finished before an operation."""
    found: set[Operation] = set()
    waiting = list(operation.after)
    while waiting:
        other = waiting.pop()
        if other not in found:
            found.add(other)
            waiting += other.after
    return found


def _rounds(task: Task, results: Sequence[Buffer], traits: Traits) -> bool:
    """Whether a task only rounds a result in groups that a chain has together."""
    kernel = task.calls[0].kernel
    return (
        isinstance(kernel, QuantizeTokensKernel)
        and kernel.form.group in traits.chain_groups
        and all(buffer in results for buffer in task.reads)
    )


def _chain(
    function: FunctionSchedule, tasks: Sequence[Task], linears: Sequence[Task], last: Task, rounders: Sequence[Task]
) -> Task:
    [call] = last.calls
    assert isinstance(call.kernel, ElementwiseKernel)
    rounded = {buffer for task in rounders for buffer in task.writes}
    read = {buffer for task in tasks if task not in rounders for buffer in task.reads} | {function.plan.result}
    needless = rounders and not any(buffer in read for buffer in call.writes if buffer.form == F32_FORM)
    made = [b for b in call.writes if not (needless and b.form == F32_FORM)]
    results = tuple(sorted([*made, *rounded], key=lambda buffer: str(buffer.form)))
    end = Call(
        replace(call.kernel, forms=tuple(buffer.form for buffer in results), chained=True),
        {**{name: a for name, a in call.arguments.items() if name not in outputs(call.writes)}, **outputs(results)},
        tuple(operation for task in (last, *rounders) for operation in task.operations),
        call.reads,
        results,
    )
    groups = [form.group for form in (buffer.form for buffer in results) if form.group != "token"]
    calls = [*(_compact(linear.calls[0]) for linear in linears), end]
    return Task(tuple(calls), linears[0].blocks, max(groups, default=ROW_BLOCK))


def _compact(call: Call) -> Call:
    """A linear that leaves the rows that it computes one after the other."""
    flags = call.arguments["flags"]
    assert isinstance(flags, Number) and isinstance(flags.value, int)
    return replace(call, arguments={**call.arguments, "flags": Number(flags.value | COMPACT)})
