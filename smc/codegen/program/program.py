"""The whole host program: kernels, a table and a function for every kind of call, and the calls in order."""

from __future__ import annotations

from collections.abc import Sequence

from smc.codegen.c_literals import c_comment
from smc.codegen.kernels.abi import PAGE_TOKENS, SPLIT_TOKENS, TILE_TOKENS, TOKEN_BLOCK
from smc.codegen.objects import KernelObject
from smc.codegen.plan.plan import FunctionPlan, Plan
from smc.codegen.program.dialect import Dialect
from smc.codegen.program.functions import write_function
from smc.codegen.program.kernel_table import kernel_tables
from smc.codegen.program.tables import call_table, engine_tables, program_constants
from smc.codegen.program.writer import CWriter
from smc.codegen.schedule.memory import MemoryPlan
from smc.codegen.schedule.profile import profile_tasks
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.weights import WeightTable
from smc.targets import Target

SHARED = {
    "SMC_PAGE_TOKENS": PAGE_TOKENS,
    "SMC_SPLIT_TOKENS": SPLIT_TOKENS,
    "SMC_TILE_TOKENS": TILE_TOKENS,
    "SMC_TOKEN_BLOCK": TOKEN_BLOCK,
}
"""Constants of program.h that kernels have built in: a program does not compile with an engine that has others."""


def host_program(
    schedule: Schedule,
    memory: MemoryPlan,
    table: WeightTable,
    weights_hash: str,
    objects: Sequence[KernelObject],
    target: Target,
    dialect: Dialect,
) -> str:
    """The C source of the program."""
    tasks, name = profile_tasks(schedule), schedule.plan.module.facts.name
    out = CWriter()
    out.write(
        f"/* {c_comment(name)}: host program, generated. All threads run it: see program.h. */",
        "#include <string.h>",
        "",
        *engine_agreement(),
    )
    out.write(*kernel_tables(schedule, objects, target))
    write_functions(out, schedule, memory, table, dialect)
    out.write(*engine_tables(schedule.plan, target, tasks, "kernels_"))
    out.write(*program_constants(schedule, memory, table, weights_hash, target, tasks, "run"))
    return out.text()


def engine_agreement() -> list[str]:
    """The engine's header, and that its constants are those of the kernels."""
    checks = (f'_Static_assert({name} == {value}, "of the engine and the kernels");' for name, value in SHARED.items())
    return ['#include "program.h"', "", *checks, ""]


def write_functions(out: CWriter, schedule: Schedule, memory: MemoryPlan, table: WeightTable, dialect: Dialect) -> None:
    """A table and a function for every kind of call, and the calls in order."""
    first_tasks: dict[tuple[str, int], int] = {}
    for index, task in enumerate(profile_tasks(schedule)):
        first_tasks.setdefault((task.function, task.phase), index)
    out.write(
        "/* Places in the weights: bytes from their begin. `kernel` is an index into the tables of kernels. */",
        "struct matrix {",
        "  uint64_t codes, scales, zeros, order, each; /* each: from one of a stack to the next */",
        "  int32_t rows, columns, kernel;",
        "};",
        "",
        "#define ARENA(type, offset) ((type *)(S->arena + (offset)))",
        "#define PRIVATE(type, offset) ((type *)(thread->scratch + (offset)))",
        "",
    )
    for function in schedule.functions:
        out.write(*call_table(schedule, table, function, dialect.constant))
        write_function(out, schedule, memory, function, dialect, first_tasks)
    _run(out, schedule, memory, dialect)


def _run(out: CWriter, schedule: Schedule, memory: MemoryPlan, dialect: Dialect) -> None:
    """The calls in order; equal neighbours in a loop over their table."""
    plan = schedule.plan
    embed, head = plan.embed, plan.head.name
    with out.block(dialect.run_head):
        out.write(*(f"float *{x} = ARENA(float, {offset});" for x, offset in zip("XY", memory.x, strict=False)))
        out.write(f"if ({embed.name}(thread, S, {embed.name}_calls, X{', 1' * (plan.last is embed)})) return;")
        for function, begin, end in _equal_neighbours(plan):
            arguments = "X" if function.in_place else "X, Y"
            if function is plan.last:
                arguments += f", i == {len(function.calls) - 1}"
            with out.block(f"for (int32_t i = {begin}; i < {end}; i++)"):
                out.write(
                    "if (smc_cancelled(thread)) return;",
                    f"if ({function.name}(thread, S, &{function.name}_calls[i], {arguments})) return;",
                )
                if not function.in_place:
                    out.write("float *swap = X;", "X = Y, Y = swap;")
        out.write(
            f"if (S->logits_count && {head}(thread, S, {head}_calls, X, 0)) return;",
            f"if (S->argmax_count) {head}(thread, S, {head}_calls, X, 1);",
        )
    out.write("")


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
