"""The functions of a program in C: their buffers, and phase by phase the loops that claim blocks and call kernels."""

from __future__ import annotations

from collections.abc import Mapping

from smc.codegen.c_literals import c_identifier
from smc.codegen.host.calls import FunctionCalls
from smc.codegen.host.tables import most_streams
from smc.codegen.kernels.abi import CHAIN_FLOATS, CHUNK_TILES, Form, chain_tokens
from smc.codegen.kernels.layout import ROW_BLOCK
from smc.codegen.kernels.specs import MergeKernel, RopeKernel
from smc.codegen.memory import MemoryPlan, Place, chained_places, private_places, width_of
from smc.codegen.plan import PRIVATE_TOKENS, Buffer, FunctionPlan, Plan, Tail, Task, kv_shape
from smc.codegen.profile import GATHER

JOINED = "S->alone && S->splits == 1"
"""When attention's blocks write into the cache what they read: in decoding, but for long contexts."""


def function_source(
    plan: Plan, memory: MemoryPlan, function: FunctionPlan, first_tasks: Mapping[tuple[str, int], int]
) -> list[str]:
    """The lines of a function. first_tasks: by function and phase, the number of its first task (profile.py)."""
    return _Function(plan, memory, function, first_tasks).source()


class _Function:
    def __init__(
        self, plan: Plan, memory: MemoryPlan, function: FunctionPlan, first_tasks: Mapping[tuple[str, int], int]
    ) -> None:
        self.plan, self.memory, self.function, self.first_tasks = plan, memory, function, first_tasks
        self.calls = FunctionCalls(plan, function)
        self.narrow: list[Task] = []
        self.lines: list[str] = []

    def emit(self, *lines: str) -> None:
        self.lines += lines

    def source(self) -> list[str]:
        plan, function = self.plan, self.function
        head = function is plan.head
        x = "float *X_all, int top" if head else "float *X" if function.in_place else "float *X, float *Y"
        if function is plan.embed:
            x = "float *Y"
        tail = function.tail() if function is plan.last else None
        if tail:
            x += ", int last"
            self.narrow = function.before_tail()
        kind = "int32_t" if tail else "const int32_t"
        self.emit(
            f"static int {function.name}(struct smc_thread *thread, const struct smc_step *S, "
            f"const struct {function.name}_call *L, {x}) {{",
            "  const struct kernels *K = S->kernels;",
            "  const uint8_t *W = S->weights;",
            f"  {kind} N = {'top ? S->top_count : S->logits_count' if head else 'S->count'};",
            f"  {kind} piece = {'N' if head else 'smc_piece_tokens(thread, N)'};",
        )
        self.buffers()
        self.private_buffers()
        self.emit("  struct smc_phase phase;", "  (void)L, (void)K, (void)W, (void)piece;")
        if function.attention():
            choice = "last ? S->wanted_tiles : S->tiles" if self.narrow else "S->tiles"
            count = "last ? S->wanted_tile_count : S->tile_count" if self.narrow else "S->tile_count"
            self.emit(f"  const struct smc_tile *tiles = {choice}; /* that attention has */")
            self.emit(f"  const int32_t tile_count = {count};")
        if head:
            self.gather()
        for number, phase in enumerate(function.phases):
            if tail and number == tail.phase:
                self.leave_out(tail)
            self.phase(number, phase)
        if tail and tail.phase == len(function.phases):
            self.leave_out(tail)
        self.emit("  return 0;", "}", "")
        return self.lines

    # ---- buffers

    def buffers(self) -> None:
        """They lie in the arena."""
        function = self.function
        gathered = [function.x] if function is self.plan.head and function.x is not None else []
        for buffer in [*function.buffers, *gathered]:
            for form in buffer.forms:
                for kind, name, offset in self.pointers(buffer, form, self.memory.places[function.name, buffer, form]):
                    self.emit(f"  {kind} *{name} = ARENA({kind}, {offset});")

    def private_buffers(self) -> None:
        """In short steps they lie in the thread's scratch."""
        for buffer in self.function.buffers:
            if not buffer.private:
                continue
            places, _ = private_places(self.plan, self.function, buffer)
            self.emit(f"  if (N <= {PRIVATE_TOKENS}) {{")
            for form, place in places.items():
                for kind, name, offset in self.pointers(buffer, form, place):
                    self.emit(f"    {name} = PRIVATE({kind}, {offset});")
            self.emit("  }")

    def pointers(self, buffer: Buffer, form: Form, place: Place) -> list[tuple[str, str, int]]:
        """The variables that a form of a buffer has: what each points to, its name and the offset."""
        name = self.calls.name(buffer, form)
        if form.kind == "f32":
            return [("float", name, place.data)]
        return [
            ("int8_t", name, place.data),
            ("float", f"{name}_scales", place.scales),
            ("int32_t", f"{name}_sums", place.sums),
        ]

    # ---- phases

    def leave_out(self, tail: Tail) -> None:
        """The tail of the last block is for the wanted tokens alone: their rows move to the front, in order."""
        rows = []
        for buffer in tail.buffers:
            name, width = self.calls.name(buffer), self.calls.width(buffer)
            to, size = f"{name} + (size_t)i * {width}", f"sizeof(float) * {width}"
            rows.append(f"        memcpy({to}, {name} + from * {width}, {size});")
        self.emit(
            "  if (last && S->wanted_count < N) { /* go on with the wanted tokens only */",
            "    if (S->wanted_count == 0) return 0;",
            "    const int32_t blocks[] = {1};",
            f"    smc_phase_begin(thread, &phase, {self.first_tasks[self.function.name, GATHER]}, 1, blocks);",
            "    while (smc_phase_claim(thread, &phase))",
            "      for (int32_t i = 0; i < S->wanted_count; i++) {",
            "        const size_t from = (size_t)S->wanted_tokens[i];",
            "        if (from == (size_t)i) continue;",
            *rows,
            "      }",
            "    if (smc_phase_end(thread, &phase)) return 1;",
            "    N = S->wanted_count;",
            "    piece = smc_piece_tokens(thread, N);",
            "  }",
        )
        self.private_buffers()

    def gather(self) -> None:
        """The head works on the tokens only that want logits, or that want to know the largest: all wanted ones, which
        its phases leave as they are, or copies of some."""
        assert self.function.x is not None
        assert not any(task.output is self.function.x for phase in self.function.phases for task in phase)
        width = width_of(self.plan, self.function, self.function.x.width)
        self.emit(
            "  if (N == S->wanted_count) X = X_all;",
            "  else { /* gather the tokens that are asked for */",
            "    const int32_t *tokens = top ? S->top_tokens : S->logits_tokens;",
            "    const int32_t blocks[] = {N};",
            f"    smc_phase_begin(thread, &phase, {self.first_tasks[self.function.name, GATHER]}, 1, blocks);",
            "    while (smc_phase_claim(thread, &phase))",
            "      for (int32_t i = phase.begin; i < phase.end; i++)",
            f"        memcpy(X + (size_t)i * {width}, X_all + (size_t)tokens[i] * {width}, {4 * width});",
            "    if (smc_phase_end(thread, &phase)) return 1;",
            "  }",
        )

    def phase(self, number: int, tasks: list[Task]) -> None:
        """Blocks of all tasks, claimed by the threads, and a barrier."""
        names = ", ".join("+".join(p.slot or f"{p.kind} of {p.node.name}" for p in t.kernels()) for t in tasks)
        first_task = self.first_tasks[self.function.name, number]
        earlier = self.function.phases[number - 1] if number else []
        self.emit(
            f"  {_condition(tasks)}{{ /* phase {number}: {names} */",
            f"    const int32_t blocks[] = {{{', '.join(self.blocks(task, _piece(tasks)) for task in tasks)}}};",
            f"    smc_phase_begin(thread, &phase, {first_task}, {len(tasks)}, blocks);",
            *([f"    smc_phase_pieces(&phase, N, {_piece(tasks)});"] if _has_rows(tasks) else []),
            f"    if (piece == N) smc_phase_ahead(thread, &phase, W, L->ahead[{number}], {most_streams(self.plan)});",
        )
        makes_private = bool(earlier) and earlier[0].private
        if makes_private:
            call = self.calls.call(earlier[0], "0", self.calls.row_count(earlier[0]))
            self.emit(
                f"    int ready = N > {PRIVATE_TOKENS};",
                "    while (smc_phase_claim(thread, &phase)) {",
                "      if (!ready) {",
                *self.cache_ahead(number),
                f"        {call};",
                "        ready = 1;",
                "      }",
            )
        else:
            self.emit("    while (smc_phase_claim(thread, &phase))")
        self.emit("      switch (phase.task) {")
        for index, task in enumerate(tasks):
            self.emit(f"        case {index}:")
            for write in earlier:
                if write.joins is task:
                    self.join(write)
            self.task(task, _piece(tasks))
            self.emit("          break;")
        self.emit("      }", *(["    }"] if makes_private else []))
        self.emit("    if (smc_phase_end(thread, &phase)) return 1;", "  }")

    def cache_ahead(self, number: int) -> list[str]:
        """Before a phase makes keys and values of one token: their place in the cache is asked for."""
        following = [task for phase in self.function.phases[number + 1 :][:1] for task in phase]
        writes = [task for task in following if isinstance(task.kernel, RopeKernel)]
        return [
            f"        if (N == 1) smc_kv_prefetch(thread, S, {self.plan.kv_group(task)}, L->cache, "
            f"{task.kernel.shape.kv_heads}, {task.kernel.shape.padded_dim});"
            for task in writes
            if isinstance(task.kernel, RopeKernel)
        ]

    def blocks(self, task: Task, piece: str) -> str:
        """How many blocks a task has; of rows, for a piece of so many tokens."""
        if task.blocks == "rows":
            if not task.parts:
                return _row_blocks(task)
            group, tokens = task.rows_at_once() // ROW_BLOCK, chain_tokens(task.rows_at_once())
            return f"({_row_blocks(task)} + {group - 1}) / {group} * (({piece} + {tokens - 1}) / {tokens})"
        if task.blocks == "chunks":
            return f"({self.calls.row_count(task)} + {CHUNK_TILES - 1}) / {CHUNK_TILES}"
        if task.blocks == "merges":
            assert isinstance(task.kernel, MergeKernel)
            return f"S->splits > 1 ? tile_count * {task.kernel.shape.heads} : 0"
        if task.blocks == "tokens":
            return "N"
        heads = kv_shape(task).kv_heads
        return f"S->tile_count * {heads}" if task.blocks == "kv" else f"tile_count * {heads} * S->splits"

    # ---- what a thread does with the blocks that it has claimed

    def join(self, write: Task) -> None:
        """The write into the cache for the blocks of attention that follow: a tile's tokens by a KV head."""
        self.emit(f"          if ({JOINED}) {self.calls.call(write, 'phase.begin', 'phase.end')};")

    def task(self, task: Task, piece: str) -> None:
        """The kernel's call, or the calls of a chain; piece: how many tokens a piece of the phase has."""
        if task.blocks == "chunks":
            count = self.calls.row_count(task)
            end = f"phase.end * {CHUNK_TILES} < {count} ? phase.end * {CHUNK_TILES} : {count}"
            self.emit(f"          {self.calls.call(task, f'phase.begin * {CHUNK_TILES}', end)};")
        elif task.parts:
            self.chain(task, piece)
        elif task.blocks == "rows":
            self.emit("          {", *self.tokens(task))
            if top := self.calls.top_call(task, "phase.begin", "phase.end"):
                self.emit(f"            if (top) {top};", "            else")
            self.emit(f"            {self.calls.call(task, 'phase.begin', 'phase.end')};", "          }")
        else:
            self.emit(f"          {self.calls.call(task, 'phase.begin', 'phase.end')};")

    def tokens(self, task: Task) -> list[str]:
        """The tokens of a linear's call: n from t on, the phase's or, for the tail alone, those of wanted tiles."""
        if task not in self.narrow:
            return ["            const int32_t t = phase.token, n = phase.tokens;"]
        return [
            "            const int32_t begin = last ? S->wanted_begin : 0, end = last ? S->wanted_end : N;",
            "            const int32_t t = phase.token > begin ? phase.token : begin;",
            "            const int32_t rest = phase.token + phase.tokens, n = (rest < end ? rest : end) - t;",
            "            if (n <= 0) break;",
        ]

    def chain(self, chain: Task, piece: str) -> None:
        """Some rows by some tokens, or as many rows by all tokens as a thread's scratch holds the results of."""
        [*linears, last] = chain.parts
        rows = chain.rows_at_once()
        group, tokens = rows // ROW_BLOCK, chain_tokens(rows)
        self.emit("          {")
        for linear, offset in zip(linears, chained_places(self.plan, self.function, chain), strict=True):
            assert linear.output is not None
            self.emit(f"            float *{c_identifier(linear.output.value)} = PRIVATE(float, {offset});")
        self.emit(
            f"            const int32_t chunks = ({piece} + {tokens - 1}) / {tokens};",
            f"            const int32_t most = {piece} < {tokens} ? {piece} : {tokens};",
            f"            const int32_t together = chunks > 1 ? 1 : {CHAIN_FLOATS // rows} / most;",
            f"            const int32_t all = {_row_blocks(chain)};",
            "            for (int32_t b = phase.begin, count; b < phase.end; b += count) {",
            "              count = phase.end - b < together ? phase.end - b : together;",
            "              const int32_t t = phase.token + b % chunks * most, rest = phase.token + phase.tokens - t;",
            "              const int32_t n = rest < most ? rest : most;",
            "              if (n <= 0) continue; /* the last piece has less */",
            f"              const int32_t begin = b / chunks * {group}, full = begin + count * {group};",
            "              const int32_t end = full < all ? full : all;",
            *(f"              {self.calls.call(linear, 'begin', 'end')};" for linear in linears),
            f"              {self.calls.chained_call(last, 't', 'n', 'begin', 'end')};",
            "            }",
            "          }",
        )


def _has_rows(tasks: list[Task]) -> bool:
    """Whether there are matmuls, which pieces of a step's tokens go through one after the other."""
    return any(task.blocks == "rows" for task in tasks)


def _piece(tasks: list[Task]) -> str:
    """How many tokens a piece of a phase has: all, where not all blocks are of rows."""
    return "piece" if all(task.blocks == "rows" for task in tasks) else "N"


def _row_blocks(task: Task) -> str:
    """How many blocks of rows the matrices of a linear, or of a chain, have."""
    assert task.slot is not None
    return f"L->{c_identifier(task.slot)}.rows / {ROW_BLOCK}"


def _condition(tasks: list[Task]) -> str:
    """Of the steps that have a phase, where not all have."""
    if all(task.blocks == "merges" for task in tasks):
        return "if (S->splits > 1) "
    if tasks[0].joins is not None:
        return f"if (!({JOINED})) "
    return f"if (N > {PRIVATE_TOKENS}) " if tasks[0].private else ""
