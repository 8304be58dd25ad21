"""The straight schedule: one task per operation, phases by dependency, no fast path."""

from __future__ import annotations

from smc.codegen.plan.plan import FunctionPlan, Plan
from smc.codegen.schedule.schedule import Call, FunctionSchedule, Gather, Schedule, Task, phases_of
from smc.codegen.schedule.traits import Traits


def straight(plan: Plan, traits: Traits) -> Schedule:
    """A task for every kernel of the plan. Before the head the rows of requested tokens are gathered, because the
    engine reads hidden states there."""
    return Schedule(plan, traits, tuple(_function(plan, function) for function in plan.functions()))


def _function(plan: Plan, function: FunctionPlan) -> FunctionSchedule:
    tasks = [Task((Call.of(operation),), operation.domain) for operation in function.operations]
    phases = phases_of(tasks)
    gather = Gather(len(phases), (function.result,)) if function is plan.last else None
    return FunctionSchedule(function, phases, gather)
