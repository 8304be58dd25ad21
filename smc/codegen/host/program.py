"""The whole host program: kernels, a table and a function for every kind of call, and the calls in order."""

from __future__ import annotations

from collections.abc import Sequence

from smc.codegen.c_literals import c_comment
from smc.codegen.host.functions import function_source
from smc.codegen.host.kernel_table import kernel_tables
from smc.codegen.host.tables import call_table, engine_tables, program_constants
from smc.codegen.memory import MemoryPlan
from smc.codegen.objects import KernelObject
from smc.codegen.plan import FunctionPlan, Plan
from smc.codegen.profile import profile_tasks
from smc.codegen.weights import WeightTable
from smc.targets import Target


def host_program(
    plan: Plan,
    memory: MemoryPlan,
    table: WeightTable,
    weights_hash: str,
    objects: Sequence[KernelObject],
    target: Target,
) -> str:
    """The C source of the program."""
    tasks = profile_tasks(plan, table)
    first_tasks: dict[tuple[str, int], int] = {}
    for index, task in enumerate(tasks):
        first_tasks.setdefault((task.function, task.phase), index)
    lines = [*_preamble(plan.module.facts.name), *kernel_tables(plan, objects, target)]
    for function in plan.functions():
        lines += call_table(plan, table, function)
        lines += function_source(plan, memory, function, first_tasks)
    lines += _run(plan, memory)
    lines += engine_tables(plan, target, tasks)
    lines += program_constants(plan, memory, table, weights_hash, target, tasks)
    return "\n".join(lines) + "\n"


def _preamble(name: str) -> list[str]:
    return [
        f"/* {c_comment(name)}: host program, generated. All threads run it: see program.h. */",
        "#include <string.h>",
        "",
        '#include "program.h"',
        "",
        "/* Places in the weights: bytes from their begin. `kernel` is an index into the tables of kernels. */",
        "struct matrix {",
        "  uint64_t codes, scales, zeros, order;",
        "  int32_t rows, columns, kernel;",
        "};",
        "",
        "#define ARENA(type, offset) ((type *)(S->arena + (offset)))",
        "#define PRIVATE(type, offset) ((type *)(thread->scratch + (offset)))",
        "",
    ]


def _run(plan: Plan, memory: MemoryPlan) -> list[str]:
    """The calls in order; equal neighbours in a loop over their table."""
    lines = [
        "static void run(struct smc_thread *thread, const struct smc_step *S) {",
        *(f"  float *{name} = ARENA(float, {offset});" for name, offset in zip("XY", memory.x, strict=False)),
        f"  if ({plan.embed.name}(thread, S, {plan.embed.name}_calls, X{', 1' * (plan.last is plan.embed)})) return;",
    ]
    for function, begin, end in _equal_neighbours(plan):
        arguments = "X" if function.in_place else "X, Y"
        if function is plan.last:
            arguments += f", i == {len(function.calls) - 1}"
        lines += [
            f"  for (int32_t i = {begin}; i < {end}; i++) {{",
            "    if (smc_cancelled(thread)) return;",
            f"    if ({function.name}(thread, S, &{function.name}_calls[i], {arguments})) return;",
        ]
        if not function.in_place:
            lines += ["    float *swap = X;", "    X = Y, Y = swap;"]
        lines.append("  }")
    head = plan.head.name
    return [
        *lines,
        f"  if (S->logits_count && {head}(thread, S, {head}_calls, X, 0)) return;",
        f"  if (S->top_count) {head}(thread, S, {head}_calls, X, 1);",
        "}",
        "",
    ]


def _equal_neighbours(plan: Plan) -> list[tuple[FunctionPlan, int, int]]:
    """The blocks in order: a function, and from which of its calls to which it runs before another one does."""
    made: dict[str, int] = {}
    runs: list[tuple[FunctionPlan, int, int]] = []
    for function, _ in plan.order[1:-1]:
        index = made.get(function.name, 0)
        made[function.name] = index + 1
        if runs and runs[-1][0] is function:
            runs[-1] = (function, runs[-1][1], index + 1)
        else:
            runs.append((function, index, index + 1))
    return runs
