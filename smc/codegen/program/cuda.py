"""The dialect of GPUs: blocks of CUDA threads go through the phases together, and share out each phase's blocks.

Kernels are functions of the same text.
"""

from __future__ import annotations

from smc.codegen.c_literals import c_identifier
from smc.codegen.plan.arguments import Buffer, Weight
from smc.codegen.plan.domains import (
    CacheWrites,
    Columns,
    Domain,
    GroupRows,
    Groups,
    Merges,
    Once,
    Rows,
    Splits,
    Tokens,
)
from smc.codegen.plan.plan import ByCacheDtype, BySlot, KernelChoice
from smc.codegen.program.blocks import CLAIMED, EXPERT, chunks, claimed_tiles, expert, groups, tiles
from smc.codegen.program.kernel_table import table_name
from smc.codegen.program.scope import ALL_TOKENS, Range, Scope
from smc.codegen.program.writer import CWriter
from smc.codegen.schedule.schedule import Call, Condition, Phase, Task


class CudaDialect:
    """All blocks of CUDA threads run the program; phases.cuh shares out a phase's blocks, and is the barrier."""

    constant = "SMC_TABLE"
    run_head = "static __device__ void run(struct smc_thread *thread, const struct smc_step *S)"

    def variables(self) -> list[str]:
        """None: kernels are functions of the same text."""
        return []

    def named(self, kind: str, name: str, value: str) -> str:
        """Made where it is used (phases.cuh)."""
        return f"const smc_name {name} = {{[&] {{ return {value}; }}}};"

    def condition(self, scope: Scope, condition: Condition) -> str:
        """C that says whether a step has a phase."""
        return {
            Condition.MANY_TOKENS: f"N > {scope.schedule.traits.private_tokens}",
            Condition.SPLIT_CACHE: "S->splits > 1",
            Condition.NOT_JOINED: "1",
        }[condition]

    def blocks(self, scope: Scope, task: Task, phase: Phase) -> str:
        """How many blocks a task has."""
        match task.blocks:
            case Tokens():
                return "N"
            case Columns(buffer):
                return chunks(scope, buffer)
            case Rows(slot):
                count = "N"
                if task in scope.function.narrow:
                    count = "(last ? S->wanted_end - S->wanted_begin : N)"
                return _row_blocks(task.calls[0], slot, count)
            case Once():
                return "1"
            case GroupRows(routing=routing) | Groups(routing) if _knows_expert(task):
                return f"{groups(routing)} * {_parts(task.blocks)}"
            case Groups(_, Buffer() as buffer):
                return chunks(scope, buffer)
            case Groups(routing):
                return f"N * {routing.chosen}"
            case CacheWrites(kv_heads):
                return f"S->tile_count * {kv_heads}"
            case Splits(kv_heads):
                return f"tile_count * {kv_heads} * S->splits"
            case Merges(heads):
                return f"S->splits > 1 ? tile_count * {heads} : 0"
        raise AssertionError(task.blocks)

    def open_phase(self, out: CWriter, scope: Scope, number: int, phase: Phase) -> None:
        """Nothing: blocks are independent of the number of threads."""

    def prefetch_caches(self, out: CWriter, scope: Scope, phase: Phase) -> None:
        """Nothing: a GPU hides that."""

    def all_blocks(self, scope: Scope, task: Task) -> str:
        """The call for all tokens, or for all their tiles of columns, and a wait for all threads of the block."""
        [call] = task.calls
        end = tiles(scope, task.blocks.buffer) if isinstance(task.blocks, Columns) else "N"
        return f"{_call(scope, call, ALL_TOKENS, begin='0', end=end)}; smc_sync();"

    def task(self, out: CWriter, scope: Scope, task: Task, phase: Phase) -> None:
        """The kernel's call, of which nothing is kept for the next block."""
        [call] = task.calls
        out.write("SMC_ANEW(L, S);")
        match task.blocks:
            case Columns(buffer):
                out.write(f"{_call(scope, call, ALL_TOKENS, **claimed_tiles(scope, buffer))};")
            case Rows():
                tokens = ALL_TOKENS
                if task in scope.function.narrow:
                    tokens = Range("(last ? S->wanted_end - S->wanted_begin : N)", "(last ? S->wanted_begin : 0)")
                if task.argmax is not None:
                    out.write(f"if (argmax) {_call(scope, task.argmax, tokens, **CLAIMED)};", "else")
                out.write(f"{_call(scope, call, tokens, **CLAIMED)};")
            case GroupRows() | Groups() if _knows_expert(task):
                with out.block():
                    _rows_of_expert(out, scope, task.blocks, call)
            case Groups(routing, columns):
                claimed = CLAIMED if columns is None else claimed_tiles(scope, columns)
                out.write(f"{_call(scope, call, Range(f'N * {routing.chosen}'), **claimed)};")
            case Splits(kv_heads):
                with out.block():
                    _run(out, scope, kv_heads, call)
            case _:
                out.write(f"{_call(scope, call, ALL_TOKENS, **CLAIMED)};")

    def move_row(self, scope: Scope, buffer: Buffer, to: str, source: str, begin: str) -> str:
        """Every thread has columns of its own, in all rows."""
        width = scope.width(buffer)
        target = f"{scope.name(buffer)} + (size_t){to} * {width}"
        return f"smc_move_row({target}, {source} + {begin} * {width}, {width});"

    def function_head(self, scope: Scope, parameters: str) -> str:
        """Every block of CUDA threads calls the function."""
        name = scope.function.plan.name
        return (
            f"static __device__ int {name}(struct smc_thread *thread, const struct smc_step *S, "
            f"const struct {name}_call *L, {parameters})"
        )


def _call(scope: Scope, call: Call, tokens: Range, **blocks: str) -> str:
    """A call of a kernel's function; where several are to choose from, their number comes first."""
    arguments = {name: scope.expression(argument, tokens) for name, argument in call.arguments.items()}
    given = call.kernel.signature().arguments({**arguments, **blocks})
    choice = _choice(call.kernel)
    return f"kernel_{table_name(call.kernel)}({choice + ', ' if choice else ''}{given})"


def _row_blocks(call: Call, slot: str, tokens: str) -> str:
    """C for how many blocks a linear has."""
    kind = "integer" if _reads_codes(call.kernel) else "float"
    return f"smc_{kind}_blocks(L->{c_identifier(slot)}.rows, {tokens})"


def _knows_expert(task: Task) -> bool:
    """Whether it needs to know whose the rows are: others take the rows of all experts as those of so many tokens."""
    return any(isinstance(argument, Weight) for argument in task.calls[0].arguments.values())


def _parts(blocks: Domain) -> str:
    """Into how many parts the work on the rows of each expert is cut: the same for all, which have few rows or many."""
    if isinstance(blocks, GroupRows):
        return f"(L->{c_identifier(blocks.slot)}.rows / (N > SMC_MANY_TOKENS ? 32 : SMC_ROWS))"
    return "(N > SMC_MANY_TOKENS ? SMC_WARPS : 1)"


def _rows_of_expert(out: CWriter, scope: Scope, blocks: GroupRows | Groups, call: Call) -> None:
    """The claimed part of the kernel's own blocks for all rows of an expert."""
    total = _row_blocks(call, blocks.slot, "n") if isinstance(blocks, GroupRows) else "n"
    out.write(
        f"const int32_t parts = {_parts(blocks)};",
        *expert(scope, blocks.routing, "(phase.begin / parts)"),
        f"const int32_t all = n ? {total} : 0, each = (all + parts - 1) / parts;",
        "const int32_t begin = phase.begin % parts * each, end = begin + each < all ? begin + each : all;",
        f"if (begin < end) {_call(scope, call, EXPERT, begin='begin', end='end')};",
    )


def _run(out: CWriter, scope: Scope, kv_heads: int, call: Call) -> None:
    """Attention to a run of tiles: where it begins, and behind it as many numbers as it has tiles."""
    assert isinstance(call.kernel, ByCacheDtype)
    each = f"{kv_heads} * S->splits"
    out.write(f"const smc_run run = smc_run_of<{call.kernel.any.shape.group}>(phase.begin, tiles, tile_count, {each});")
    arguments = {"begin": "run.block", "end": "run.block + run.tiles"}
    out.write(f"if (run.tiles) {_call(scope, call, ALL_TOKENS, **arguments)};")


def _choice(kernel: KernelChoice) -> str | None:
    """C for the number of a kernel among those of its table; None if there is one only."""
    if isinstance(kernel, BySlot):
        return f"L->{c_identifier(kernel.slot)}.kernel"
    return "S->kv_dtype" if isinstance(kernel, ByCacheDtype) else None


def _reads_codes(kernel: KernelChoice) -> bool:
    """Whether a linear's inputs are int8."""
    return isinstance(kernel, BySlot) and kernel.inputs == "i8"
