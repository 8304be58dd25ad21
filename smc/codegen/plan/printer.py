"""A plan as text, for people (`smc compile --emit plan`)."""

from __future__ import annotations

from collections.abc import Mapping

from smc.codegen.plan.arguments import Argument
from smc.codegen.plan.plan import FunctionPlan, Operation, Plan, kernel_text


def print_plan(plan: Plan) -> str:
    """Every function with its operations in order: what it is named after, its kernel, arguments and blocks."""
    calls = " ".join(function.name for function, _ in plan.order)
    parts = [f"calls: {calls}\n", *(_function(function) for function in plan.functions())]
    return "\n".join(parts)


def _function(function: FunctionPlan) -> str:
    x = "" if function.x is None else str(function.x)
    place = ", in place" if function.in_place else ""
    lines = [f"{function.name}({x}) -> {function.result}{place}, {len(function.calls)} calls"]
    lines += [f"  {_operation(operation)}" for operation in function.operations]
    return "\n".join(lines) + "\n"


def _operation(operation: Operation) -> str:
    call = f"{kernel_text(operation.kernel)}({arguments_text(operation.arguments)})"
    return f"{operation}: {call}, by {operation.domain}"


def arguments_text(arguments: Mapping[str, Argument]) -> str:
    """Arguments by name."""
    return ", ".join(f"{name}={argument}" for name, argument in arguments.items())
