"""The dialect of GPUs: blocks of CUDA threads go through the phases together, and share out each phase's blocks.

Kernels are functions of the same text.
"""

from __future__ import annotations

from smc.codegen.c_literals import c_identifier
from smc.codegen.plan.arguments import Buffer
from smc.codegen.plan.domains import CacheWrites, Columns, Merges, Rows, Splits, Tokens
from smc.codegen.plan.plan import ByCacheDtype, BySlot, KernelChoice
from smc.codegen.program.blocks import CLAIMED, chunks, claimed_tiles, tiles
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
        return f"const smc_name {name} = {{[=] {{ return {value}; }}}};"

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
                kind = "integer" if _reads_codes(task.calls[0].kernel) else "float"
                return f"smc_{kind}_blocks(L->{c_identifier(slot)}.rows, {count})"
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
        """The kernel's call."""
        [call] = task.calls
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


def _choice(kernel: KernelChoice) -> str | None:
    """C for the number of a kernel among those of its table; None if there is one only."""
    if isinstance(kernel, BySlot):
        return f"L->{c_identifier(kernel.slot)}.kernel"
    return "S->kv_dtype" if isinstance(kernel, ByCacheDtype) else None


def _reads_codes(kernel: KernelChoice) -> bool:
    """Whether a linear's inputs are int8."""
    return isinstance(kernel, BySlot) and kernel.inputs == "i8"
