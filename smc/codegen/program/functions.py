"""The functions of a program in C: their buffers, and phase by phase the loops that claim blocks and call kernels."""

from __future__ import annotations

from collections.abc import Mapping

from smc.codegen.plan.arguments import Buffer
from smc.codegen.program.dialect import Dialect
from smc.codegen.program.scope import Scope
from smc.codegen.program.writer import CWriter
from smc.codegen.schedule.memory import MemoryPlan
from smc.codegen.schedule.places import Place
from smc.codegen.schedule.profile import GATHER
from smc.codegen.schedule.schedule import FunctionSchedule, Gather, Phase, Schedule
from smc.codegen.schedule.scratch import private_places


def write_function(
    out: CWriter,
    schedule: Schedule,
    memory: MemoryPlan,
    function: FunctionSchedule,
    dialect: Dialect,
    first_tasks: Mapping[tuple[str, int], int],
) -> None:
    """Write a function. first_tasks: by function and phase, the number of its first task (profile.py)."""
    _Function(out, schedule, memory, function, dialect, first_tasks).write()


class _Function:
    def __init__(
        self,
        out: CWriter,
        schedule: Schedule,
        memory: MemoryPlan,
        function: FunctionSchedule,
        dialect: Dialect,
        first_tasks: Mapping[tuple[str, int], int],
    ) -> None:
        self.out, self.schedule, self.memory, self.function = out, schedule, memory, function
        self.dialect, self.first_tasks = dialect, first_tasks
        self.scope = Scope(schedule, function)

    def write(self) -> None:
        out, function = self.out, self.function
        with out.block(self.dialect.function_head(self.scope, self.parameters())):
            self.variables()
            if self.scope.is_head:
                self.gather_copies()
            for number, phase in enumerate(function.phases):
                if function.gather and number == function.gather.phase:
                    self.leave_out(function.gather)
                self.phase(number, phase)
            if function.gather and function.gather.phase == len(function.phases):
                self.leave_out(function.gather)
            out.write("return 0;")
        out.write("")

    def parameters(self) -> str:
        """Those that not all functions have: buffers, whether it is the last call before the head, what a head does."""
        plan = self.function.plan
        if self.scope.is_head:
            return "float *X_all, int argmax"
        x = "float *Y" if plan.x is None else "float *X" if plan.in_place else "float *X, float *Y"
        return f"{x}, int last" if self.function.gather else x

    def variables(self) -> None:
        """The short names that calls use."""
        out, head = self.out, self.scope.is_head
        kind = "int32_t" if self.function.gather else "const int32_t"
        out.write(
            *self.dialect.variables(),
            self.dialect.named("const uint8_t *", "W", "S->weights"),
            f"{kind} N = {'argmax ? S->argmax_count : S->logits_count' if head else 'S->count'};",
            f"{kind} piece = {'N' if head else 'smc_piece_tokens(thread, N)'};",
        )
        self.buffers()
        self.private_buffers()
        out.write("struct smc_phase phase;", "(void)L, (void)W, (void)piece;")
        if self.function.plan.cache():
            narrow = bool(self.function.narrow)
            tiles = "last ? S->wanted_tiles : S->tiles" if narrow else "S->tiles"
            count = "last ? S->wanted_tile_count : S->tile_count" if narrow else "S->tile_count"
            out.write(self.dialect.named("const struct smc_tile *", "tiles", tiles) + " /* that attention has */")
            out.write(self.dialect.named("const int32_t ", "tile_count", count))

    # ---- buffers

    def buffers(self) -> None:
        """They lie in the arena."""
        x = self.function.plan.x
        gathered = [x] if self.scope.is_head and x is not None else []
        for buffer in self.function.buffers():
            for kind, name, offset in self.pointers(buffer, self.memory.places[buffer]):
                self.out.write(self.dialect.named(f"{kind} *", name, f"ARENA({kind}, {offset})"))
        for buffer in gathered:
            for kind, name, offset in self.pointers(buffer, self.memory.places[buffer]):
                self.out.write(f"{kind} *{name} = ARENA({kind}, {offset});")

    def private_buffers(self) -> None:
        """In short steps they lie in the thread's scratch."""
        for task in self.function.private():
            with self.out.block(f"if (N <= {self.schedule.traits.private_tokens})"):
                for buffer, place in private_places(self.schedule, self.function, task).items():
                    for kind, name, offset in self.pointers(buffer, place):
                        self.out.write(f"{name} = PRIVATE({kind}, {offset});")

    def pointers(self, buffer: Buffer, place: Place) -> list[tuple[str, str, int]]:
        """The variables that a buffer has: what each points to, its name and the offset."""
        name = self.scope.name(buffer)
        if not buffer.form.has_scales:
            return [("float" if buffer.form.is_float else "int32_t", name, place.data)]
        return [
            ("int8_t", name, place.data),
            ("float", f"{name}_scales", place.scales),
            ("int32_t", f"{name}_sums", place.sums),
        ]

    # ---- phases

    def leave_out(self, gather: Gather) -> None:
        """From here on the last call before the head works on requested tokens only: their rows move to the front."""
        out, scope = self.out, self.scope
        with out.block("if (last && S->wanted_count < N)", "}"):
            out.write("/* go on with the wanted tokens only */", "if (S->wanted_count == 0) return 0;")
            self.begin_phase(GATHER, ["1"])
            out.write("while (smc_phase_claim(thread, &phase))")
            with out.deeper(), out.block("for (int32_t i = 0; i < S->wanted_count; i++)"):
                out.write("const size_t from = (size_t)S->wanted_tokens[i];", "if (from == (size_t)i) continue;")
                for buffer in gather.buffers:
                    out.write(self.dialect.move_row(scope, buffer, "i", scope.name(buffer), "from"))
            out.write(
                "if (smc_phase_end(thread, &phase)) return 1;",
                "N = S->wanted_count;",
                "piece = smc_piece_tokens(thread, N);",
            )
        self.private_buffers()

    def gather_copies(self) -> None:
        """The head works only on tokens whose logits, or largest logit, are requested: all requested tokens, whose rows
        its phases do not change, or copies of some."""
        x, out = self.function.plan.x, self.out
        assert x is not None and not any(x in task.writes for task in self.function.tasks())
        out.write("if (N == S->wanted_count) X = X_all;")
        with out.block("else"):
            out.write(
                "/* gather the tokens whose output is requested */",
                "const int32_t *tokens = argmax ? S->argmax_tokens : S->logits_tokens;",
            )
            self.begin_phase(GATHER, ["N"])
            out.write("while (smc_phase_claim(thread, &phase))")
            with out.deeper():
                out.write("for (int32_t i = phase.begin; i < phase.end; i++)")
                with out.deeper():
                    out.write(self.dialect.move_row(self.scope, x, "i", "X_all", "(size_t)tokens[i]"))
            out.write("if (smc_phase_end(thread, &phase)) return 1;")

    def begin_phase(self, number: int, blocks: list[str]) -> None:
        """The blocks of all tasks of a phase, and its begin."""
        first = self.first_tasks[self.function.plan.name, number]
        self.out.write(
            f"const int32_t blocks[] = {{{', '.join(blocks)}}};",
            f"smc_phase_begin(thread, &phase, {first}, {len(blocks)}, blocks);",
        )

    def phase(self, number: int, phase: Phase) -> None:
        """Blocks of all tasks, claimed by the threads, and a barrier."""
        out, scope, dialect = self.out, self.scope, self.dialect
        names = ", ".join("+".join(str(call.operation) for call in task.calls) for task in phase.tasks)
        condition = f"if ({dialect.condition(scope, phase.condition)})" if phase.condition else ""
        with out.block(condition):
            out.lines[-1] += f" /* phase {number}: {names} */"
            self.begin_phase(number, [dialect.blocks(scope, task, phase) for task in phase.tasks])
            dialect.open_phase(out, scope, number, phase)
            if phase.first is None:
                out.write("while (smc_phase_claim(thread, &phase))")
                with out.deeper():
                    self.switch(phase)
            else:
                out.write(f"int ready = N > {self.schedule.traits.private_tokens};")
                with out.block("while (smc_phase_claim(thread, &phase))"):
                    with out.block("if (!ready)"):
                        dialect.prefetch_caches(out, scope, phase)
                        out.write(dialect.all_blocks(scope, phase.first), "ready = 1;")
                    self.switch(phase)
            out.write("if (smc_phase_end(thread, &phase)) return 1;")

    def switch(self, phase: Phase) -> None:
        """What is done with claimed blocks, by task."""
        with self.out.block("switch (phase.task)"):
            for index, task in enumerate(phase.tasks):
                self.out.write(f"case {index}:")
                with self.out.deeper():
                    self.dialect.task(self.out, self.scope, task, phase)
                    self.out.write("break;")
