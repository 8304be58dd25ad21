"""The CPU's dialect: threads claim blocks of a phase, and call kernels through a table of their level."""

from __future__ import annotations

from smc.codegen.c_literals import c_identifier
from smc.codegen.kernels.layout import ROW_BLOCK
from smc.codegen.plan.arguments import Buffer
from smc.codegen.plan.domains import (
    CacheWrites,
    Columns,
    GroupRows,
    Groups,
    Merges,
    Once,
    Rows,
    Splits,
    Tokens,
)
from smc.codegen.plan.work import WIDTH_MULTIPLE
from smc.codegen.program.blocks import CLAIMED, EXPERT, chunks, claimed_tiles, expert, groups, tiles
from smc.codegen.program.kernel_table import member
from smc.codegen.program.scope import ALL_TOKENS, Range, Scope
from smc.codegen.program.tables import most_streams
from smc.codegen.program.writer import CWriter
from smc.codegen.schedule.schedule import Call, Condition, Phase, Task
from smc.codegen.schedule.scratch import chain_places

JOINED = "S->alone && S->splits == 1"
"""When attention's blocks write into the cache what they read: in decoding, but for long contexts."""


class CpuDialect:
    """All threads run the program; the engine's phase.c shares out blocks, and is the barrier."""

    constant = "static const"
    run_head = "static void run(struct smc_thread *thread, const struct smc_step *S)"

    def variables(self) -> list[str]:
        """The kernels of the level in use."""
        return ["const struct kernels *K = S->kernels;", "(void)K;"]

    def named(self, kind: str, name: str, value: str) -> str:
        """A variable."""
        return f"{kind}{name} = {value};"

    def condition(self, scope: Scope, condition: Condition) -> str:
        """C that says whether a step has a phase."""
        return {
            Condition.MANY_TOKENS: f"N > {scope.schedule.traits.private_tokens}",
            Condition.SPLIT_CACHE: "S->splits > 1",
            Condition.NOT_JOINED: f"!({JOINED})",
        }[condition]

    def blocks(self, scope: Scope, task: Task, phase: Phase) -> str:
        """How many blocks a task has; of rows, for a piece of the tokens."""
        match task.blocks:
            case Tokens():
                return "N"
            case Columns(buffer):
                return chunks(scope, buffer)
            case GroupRows(slot, routing):
                rows = f"(L->{c_identifier(slot)}.rows / {ROW_BLOCK})"
                if task.is_chain:
                    group = task.rows_at_once // ROW_BLOCK
                    rows = f"(({rows} + {group - 1}) / {group})"
                return f"{groups(routing)} * {rows}"
            case Rows() if task.is_chain:
                group = task.rows_at_once // ROW_BLOCK
                tokens = scope.schedule.traits.tokens_of_chain(task.rows_at_once)
                rows = f"({_row_blocks(task)} + {group - 1}) / {group}"
                return f"{rows} * (({_piece(phase)} + {tokens - 1}) / {tokens})"
            case Rows():
                return _row_blocks(task)
            case Once():
                return "1"
            case Groups(routing):
                return groups(routing)
            case CacheWrites(kv_heads):
                return f"S->tile_count * {kv_heads}"
            case Splits(kv_heads):
                return f"tile_count * {kv_heads} * S->splits"
            case Merges(heads):
                return f"S->splits > 1 ? tile_count * {heads} : 0"
        raise AssertionError(task.blocks)

    def open_phase(self, out: CWriter, scope: Scope, number: int, phase: Phase) -> None:
        """Pieces of the tokens, which matmuls go through one after the other, and the next phase's weights."""
        if any(isinstance(task.blocks, Rows) for task in phase.tasks):
            out.write(f"smc_phase_pieces(&phase, N, {_piece(phase)});")
        if phase.prefetches:
            streams = most_streams(scope.schedule)
            out.write(f"if (piece == N) smc_phase_prefetch(thread, &phase, W, L->prefetch[{number}], {streams});")

    def prefetch_caches(self, out: CWriter, scope: Scope, phase: Phase) -> None:
        """In a step of one token."""
        for shape in phase.prefetched_caches:
            numbers = f"{scope.schedule.plan.kv_group(shape)}, L->cache, {shape.kv_heads}, {shape.padded_dim}"
            out.write(f"if (N == 1) smc_kv_prefetch(thread, S, {numbers});")

    def all_blocks(self, scope: Scope, task: Task) -> str:
        """The call for all tokens, or for all their tiles of columns."""
        [call] = task.calls
        end = tiles(scope, task.blocks.buffer) if isinstance(task.blocks, Columns) else "N"
        return f"{_call(scope, call, ALL_TOKENS, begin='0', end=end)};"

    def task(self, out: CWriter, scope: Scope, task: Task, phase: Phase) -> None:
        """The kernel's call, or the calls of a chain."""
        if task.joined is not None:
            [write] = task.joined.calls
            out.write(f"if ({JOINED}) {_call(scope, write, ALL_TOKENS, **CLAIMED)};")
        if task.is_chain:
            with out.block():
                if isinstance(task.blocks, GroupRows):
                    _group_chain(out, scope, task, task.blocks)
                else:
                    _chain(out, scope, task, _piece(phase))
            return
        [call] = task.calls
        match task.blocks:
            case Columns(buffer):
                out.write(f"{_call(scope, call, ALL_TOKENS, **claimed_tiles(scope, buffer))};")
            case Rows():
                with out.block():
                    _rows(out, scope, task, call)
            case Groups():
                _whole_groups(out, scope, task.blocks, call)
            case GroupRows():
                _group_rows(out, scope, task.blocks, call)
            case _:
                out.write(f"{_call(scope, call, ALL_TOKENS, **CLAIMED)};")

    def move_row(self, scope: Scope, buffer: Buffer, to: str, source: str, begin: str) -> str:
        """memcpy."""
        width = scope.width(buffer)
        target = f"{scope.name(buffer)} + (size_t){to} * {width}"
        return f"memcpy({target}, {source} + {begin} * {width}, sizeof(float) * {width});"

    def function_head(self, scope: Scope, parameters: str) -> str:
        """Every thread calls the function."""
        name = scope.function.plan.name
        return (
            f"static int {name}(struct smc_thread *thread, const struct smc_step *S, "
            f"const struct {name}_call *L, {parameters})"
        )


def _call(scope: Scope, call: Call, tokens: Range, **blocks: str) -> str:
    """A call through the table of kernels; blocks: the arguments that say which."""
    arguments = {name: scope.expression(argument, tokens) for name, argument in call.arguments.items()}
    return f"K->{member(call.kernel)}({call.kernel.signature().arguments({**arguments, **blocks})})"


def _row_blocks(task: Task) -> str:
    """How many blocks of rows the matrices of a linear, or of a chain, have."""
    assert isinstance(task.blocks, Rows)
    return f"L->{c_identifier(task.blocks.slot)}.rows / {ROW_BLOCK}"


def _piece(phase: Phase) -> str:
    """How many tokens a piece of a phase has: all, where not all blocks are of rows."""
    return "piece" if all(isinstance(task.blocks, Rows) for task in phase.tasks) else "N"


def _rows(out: CWriter, scope: Scope, task: Task, call: Call) -> None:
    """A linear for n tokens from t on: the phase's or, for the tail alone, those of requested tiles."""
    if task in scope.function.narrow:
        out.write(
            "const int32_t begin = last ? S->wanted_begin : 0, end = last ? S->wanted_end : N;",
            "const int32_t t = phase.token > begin ? phase.token : begin;",
            "const int32_t rest = phase.token + phase.tokens, n = (rest < end ? rest : end) - t;",
            "if (n <= 0) break;",
        )
    else:
        out.write("const int32_t t = phase.token, n = phase.tokens;")
    tokens = Range("n", "t")
    if task.argmax is not None:
        out.write(f"if (argmax) {_call(scope, task.argmax, tokens, **CLAIMED)};", "else")
    out.write(f"{_call(scope, call, tokens, **CLAIMED)};")


def _whole_groups(out: CWriter, scope: Scope, blocks: Groups, call: Call) -> None:
    """Calls for all rows of every claimed expert."""
    end = "n" if blocks.columns is None else f"n * ({scope.width(blocks.columns)} / {WIDTH_MULTIPLE})"
    with out.block("for (int32_t b = phase.begin; b < phase.end; b++)"):
        out.write(*expert(scope, blocks.routing, "b"), "(void)expert;")
        out.write(f"if (n) {_call(scope, call, EXPERT, begin='0', end=end)};")


def _group_rows(out: CWriter, scope: Scope, blocks: GroupRows, call: Call) -> None:
    """A linear for some rows of the matrices of the claimed experts: those of one at a time."""
    out.write(f"for (int32_t b = phase.begin, all = L->{c_identifier(blocks.slot)}.rows / {ROW_BLOCK}, end; "
              "b < phase.end; b = end)")
    with out.block():
        out.write("end = (b / all + 1) * all < phase.end ? (b / all + 1) * all : phase.end;")
        out.write(*expert(scope, blocks.routing, "(b / all)"))
        own = {"begin": "b % all", "end": "end - b / all * all"}
        out.write(f"if (n) {_call(scope, call, EXPERT, **own)};")


def _group_chain(out: CWriter, scope: Scope, chain: Task, blocks: GroupRows) -> None:
    """Some rows of the matrices of an expert by all its rows, or as many rows as a thread's scratch has room for."""
    [*linears, last] = chain.calls
    traits, rows = scope.schedule.traits, chain.rows_at_once
    group, tokens = rows // ROW_BLOCK, traits.tokens_of_chain(rows)
    for buffer, offset in chain_places(scope.schedule, scope.function, chain).items():
        out.write(f"float *{scope.name(buffer)} = PRIVATE(float, {offset});")
    out.write(
        f"const int32_t row_blocks = L->{c_identifier(blocks.slot)}.rows / {ROW_BLOCK};",
        f"const int32_t all = (row_blocks + {group - 1}) / {group};",
    )
    with out.block("for (int32_t b = phase.begin, end; b < phase.end; b = end)"):
        out.write("end = (b / all + 1) * all < phase.end ? (b / all + 1) * all : phase.end;")
        out.write(*expert(scope, blocks.routing, "(b / all)"))
        out.write(f"const int32_t most = n < {tokens} ? n : {tokens};", "if (n == 0) continue;")
        out.write(f"const int32_t together = n > most ? 1 : {traits.chain_floats // rows} / most;")
        with out.block("for (int32_t c = b; c < end; c += together)"):
            out.write(
                f"const int32_t left = end - c, low = c % all * {group};",
                f"const int32_t full = low + (left < together ? left : together) * {group};",
                "const int32_t high = full < row_blocks ? full : row_blocks;",
            )
            with out.block("for (int32_t t = 0; t < n; t += most)"):
                out.write("const int32_t count = n - t < most ? n - t : most;")
                some = Range("count", "(first + t)", chain.inner, "expert")
                out.write(*(f"{_call(scope, linear, some, begin='low', end='high')};" for linear in linears))
                whole = Range("n", "first", chain.inner, "expert")
                own = {"first": "t", "count": "count", "begin": "low", "end": "high"}
                out.write(f"{_call(scope, last, whole, **own)};")


def _chain(out: CWriter, scope: Scope, chain: Task, piece: str) -> None:
    """Some rows by some tokens, or as many rows by all tokens as a thread's scratch holds the results of."""
    [*linears, last] = chain.calls
    traits, rows = scope.schedule.traits, chain.rows_at_once
    group, tokens = rows // ROW_BLOCK, traits.tokens_of_chain(rows)
    for buffer, offset in chain_places(scope.schedule, scope.function, chain).items():
        out.write(f"float *{scope.name(buffer)} = PRIVATE(float, {offset});")
    out.write(
        f"const int32_t chunks = ({piece} + {tokens - 1}) / {tokens};",
        f"const int32_t most = {piece} < {tokens} ? {piece} : {tokens};",
        f"const int32_t together = chunks > 1 ? 1 : {traits.chain_floats // rows} / most;",
        f"const int32_t all = {_row_blocks(chain)};",
    )
    claimed = Range("n", "t", chain.inner)
    with out.block("for (int32_t b = phase.begin, count; b < phase.end; b += count)"):
        out.write(
            "count = phase.end - b < together ? phase.end - b : together;",
            "const int32_t t = phase.token + b % chunks * most, rest = phase.token + phase.tokens - t;",
            "const int32_t n = rest < most ? rest : most;",
            "if (n <= 0) continue; /* the last piece has less */",
            f"const int32_t begin = b / chunks * {group}, full = begin + count * {group};",
            "const int32_t end = full < all ? full : all;",
        )
        if chain.argmax is not None:
            argmax = _call(scope, chain.argmax, Range("n", "t"), begin="begin", end="end")
            out.write(f"if (argmax) {{ {argmax}; continue; }}")
        out.write(
            *(f"{_call(scope, linear, claimed, begin='begin', end='end')};" for linear in linears),
            f"{_call(scope, last, ALL_TOKENS, first='t', count='n', begin='begin', end='end')};",
        )
