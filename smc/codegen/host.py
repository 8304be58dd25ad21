"""plan → C: the host program, text made to be read (`smc compile --emit c`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from smc.codegen.kernels.specs import (
    ACCUMULATE,
    CHAIN_FLOATS,
    CHAIN_TOKENS,
    CHUNK_TILES,
    COMPACT,
    F32_FORM,
    HAS_BIAS,
    AttentionKernel,
    AttentionShape,
    ElementwiseKernel,
    Form,
    KernelSpec,
    KVDtype,
    LinearKernel,
    MergeKernel,
    RmsNormKernel,
    RopeKernel,
)
from smc.codegen.layout import ROW_BLOCK, padded
from smc.codegen.memory import MemoryPlan, private_bytes, private_places, symbol_values, width_of
from smc.codegen.objects import KernelObject
from smc.codegen.plan import (
    PRIVATE_TOKENS,
    WIDTH_MULTIPLE,
    Buffer,
    FunctionPlan,
    Plan,
    Task,
    attention_shapes,
    embedding_kernels,
    linear_kernels,
    padded_width,
    rope_table,
)
from smc.codegen.profile import GATHER, profile_tasks
from smc.codegen.weights import WeightTable
from smc.ir import inverse_frequencies
from smc.targets import Target

KV_DTYPES: tuple[KVDtype, ...] = ("f16", "f32", "i8")
"""In the order of the engine's smc_kv_dtype."""


JOINED = "S->alone && S->splits == 1"
"""When attention's blocks write into the cache what they read: in decoding, but for long contexts."""

OUT, OUT_STRIDE = 7, 11
"""Places among a linear kernel's arguments."""

Call = tuple[str, list[str]]
"""A member of `struct kernels` and the arguments before begin and end, as C expressions."""


def program_kernels(plan: Plan) -> list[KernelSpec]:
    """Every kernel that a program needs, each once, in a fixed order."""
    kernels: list[KernelSpec] = [*linear_kernels(plan), *embedding_kernels(plan)]
    for function in plan.functions():
        for phase in function.phases:
            for task in (part for group in phase for part in group.kernels()):
                if isinstance(task.kernel, (RopeKernel, AttentionKernel)):
                    kernels += [_with_kv(task.kernel, dtype) for dtype in KV_DTYPES]
                elif task.kernel is not None:
                    kernels.append(task.kernel)
    top = top_kernel(plan)
    return list(dict.fromkeys([*kernels, *([top] if top else [])]))


def top_kernel(plan: Plan) -> LinearKernel | None:
    """The kernel that finds the largest logits, where logits are what a linear makes of the last hidden states."""
    [*_, last] = plan.head.phases
    if len(last) > 1 or last[0].kind != "linear" or last[0].slot is None:
        return None
    names = {call.attributes["parameters"][last[0].slot] for call in plan.head.calls}
    [encoding] = {plan.module.parameters[name].encoding for name in names}
    return LinearKernel(encoding, top=True)


def host_program(
    plan: Plan,
    memory: MemoryPlan,
    table: WeightTable,
    weights_hash: str,
    objects: Sequence[KernelObject],
    target: Target,
) -> str:
    """The C source of the program."""
    return _Host(plan, memory, table, weights_hash, objects, target).text()


def _with_kv(kernel: RopeKernel | AttentionKernel, dtype: KVDtype) -> RopeKernel | AttentionKernel:
    return replace(kernel, shape=replace(kernel.shape, kv_dtype=dtype))


def _identifier(name: str) -> str:
    return name.replace(".", "_")


class _Host:
    def __init__(
        self,
        plan: Plan,
        memory: MemoryPlan,
        table: WeightTable,
        weights_hash: str,
        objects: Sequence[KernelObject],
        target: Target,
    ) -> None:
        self.plan, self.memory, self.table, self.weights_hash = plan, memory, table, weights_hash
        self.objects, self.target = objects, target
        self.linears, self.embeddings = linear_kernels(plan), embedding_kernels(plan)
        self.top = top_kernel(plan)
        self.tasks = profile_tasks(plan, table)
        self.first_tasks: dict[tuple[str, int], int] = {}
        for index, task in enumerate(self.tasks):
            self.first_tasks.setdefault((task.function, task.phase), index)
        self.lines: list[str] = []
        self.scratch_bytes = 0

    def text(self) -> str:
        facts = self.plan.module.facts
        self.emit(
            f"/* {_comment(facts.name)}: host program, generated. All threads run it: see program.h. */",
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
        )
        self.kernel_tables()
        for function in self.plan.functions():
            self.layer_table(function)
            self.function(function)
        self.run()
        self.program()
        return "\n".join(self.lines) + "\n"

    def emit(self, *lines: str) -> None:
        self.lines += lines

    # ---- kernels

    def kernel_tables(self) -> None:
        """A struct of function pointers, and one instance for every level."""
        first = self.target.levels[0]
        prototypes = {o.spec: o.prototype for o in self.objects}
        fields: list[tuple[str, list[KernelSpec]]] = [
            ("linear", list(self.linears)),
            ("embedding", list(self.embeddings)),
        ]
        grouped = {*self.linears, *self.embeddings}
        for spec in dict.fromkeys(o.spec for o in self.objects if o.level == first):
            if isinstance(spec, (RopeKernel, AttentionKernel)):
                if spec.shape.kv_dtype == KV_DTYPES[0]:
                    fields.append((_field(spec), [_with_kv(spec, dtype) for dtype in KV_DTYPES]))
            elif spec not in grouped:
                fields.append((_field(spec), [spec]))
        self.emit("struct kernels {")
        for name, specs in fields:
            assert len({prototypes[spec] for spec in specs}) == 1, f"kernels of {name} differ in their parameters"
            size = f"[{len(specs)}]" if len(specs) > 1 or name in ("linear", "embedding") else ""
            self.emit(f"  int32_t (*{name}{size})({prototypes[specs[0]]});")
        self.emit("};", "")
        symbols = {(o.spec, o.level): o.symbol for o in self.objects}
        for o in self.objects:
            self.emit(f"int32_t {o.symbol}({o.prototype});")
        for level in self.target.levels:
            self.emit("", f"static const struct kernels kernels_{level.name} = {{")
            for name, specs in fields:
                names = ", ".join(symbols[spec, level] for spec in specs)
                array = len(specs) > 1 or name in ("linear", "embedding")
                self.emit(f"    .{name} = {{{names}}}," if array else f"    .{name} = {names},")
            self.emit("};")
        self.emit("")

    # ---- tables of calls

    def layer_table(self, function: FunctionPlan) -> None:
        """What differs between the calls of a function: places of weights, widths, its part of the KV cache."""
        symbols = function.symbols()
        slots = [slot for slot in function.function.parameters() if function.function.users(slot.name)]
        matrices = [slot.name for slot in slots if len(slot.tensor.shape) == 2]
        self.emit(f"struct {function.name}_call {{")
        for slot in slots:
            kind = "struct matrix" if slot.name in matrices else "uint64_t"
            self.emit(f"  {kind} {_identifier(slot.name)};")
        for symbol in symbols:
            self.emit(f"  int32_t {symbol}; /* padded */")
        if function.attends():
            self.emit("  int64_t cache; /* KV heads in front of its own in a KV page */")
        self.emit(
            "};", "", f"static const struct {function.name}_call {function.name}_calls[{len(function.calls)}] = {{"
        )
        layers = {call.name: layer for layer, call in enumerate(c for f, c in self.plan.order if f.attends())}
        for index, call in enumerate(function.calls):
            names = call.attributes["parameters"]
            values = [
                self.matrix(function, names[s.name]) if s.name in matrices else str(self.table.vectors[names[s.name]])
                for s in slots
            ]
            dims = symbol_values(self.plan, function, index)
            values += [str(padded_width(dims[symbol])) for symbol in symbols]
            if function.attends():
                values.append(str(layers[call.name] * self.plan.kv_heads))
            self.emit(f"    {{{', '.join(values)}}},")
        self.emit("};", "")

    def matrix(self, function: FunctionPlan, name: str) -> str:
        """The initializer of a `struct matrix`; its kernel is one of those that look up rows, or that multiply."""
        place, encoding = self.table.matrices[name], self.plan.module.parameters[name].encoding
        kernels = self.embeddings if function is self.plan.embed else self.linears
        index = [kernel.encoding for kernel in kernels].index(encoding)
        places = (place.codes, place.scales, place.zeros, place.order, place.rows, place.columns, index)
        return f"{{{', '.join(map(str, places))}}}"

    # ---- functions

    def function(self, function: FunctionPlan) -> None:
        head = function is self.plan.head
        x = "const float *X_all, int top" if head else "float *X" if function.in_place else "const float *X, float *Y"
        if function is self.plan.embed:
            x = "float *Y"
        self.emit(
            f"static int {function.name}(struct smc_thread *thread, const struct smc_step *S, "
            f"const struct {function.name}_call *L, {x}) {{",
            "  const struct kernels *K = S->kernels;",
            "  const uint8_t *W = S->weights;",
            f"  const int32_t N = {'top ? S->top_count : S->logits_count' if head else 'S->count'};",
        )
        for buffer in function.buffers:
            self.declare(function, buffer)
        if head and function.x is not None:
            self.declare(function, function.x)
        for buffer in function.buffers:
            if buffer.private:
                self.declare_private(function, buffer)
        self.emit("  struct smc_phase phase;", "  (void)L, (void)K, (void)W;")
        if head:
            self.gather(function)
        for number, phase in enumerate(function.phases):
            self.phase(function, number, phase)
        self.emit("  return 0;", "}", "")

    def declare(self, function: FunctionPlan, buffer: Buffer) -> None:
        for form in buffer.forms:
            place = self.memory.places[function.name, buffer, form]
            name = self.name(function, buffer, form)
            if form.kind == "f32":
                self.emit(f"  float *{name} = ARENA(float, {place.data});")
            else:
                self.emit(
                    f"  int8_t *{name} = ARENA(int8_t, {place.data});",
                    f"  float *{name}_scales = ARENA(float, {place.scales});",
                    f"  int32_t *{name}_sums = ARENA(int32_t, {place.sums});",
                )

    def declare_private(self, function: FunctionPlan, buffer: Buffer) -> None:
        """In short steps the buffer lies in the thread's scratch."""
        places, size = private_places(self.plan, function, buffer)
        self.scratch_bytes = max(self.scratch_bytes, size)
        self.emit(f"  if (N <= {PRIVATE_TOKENS}) {{")
        for form, place in places.items():
            name = self.name(function, buffer, form)
            if form.kind == "f32":
                self.emit(f"    {name} = PRIVATE(float, {place.data});")
            else:
                self.emit(
                    f"    {name} = PRIVATE(int8_t, {place.data});",
                    f"    {name}_scales = PRIVATE(float, {place.scales});",
                    f"    {name}_sums = PRIVATE(int32_t, {place.sums});",
                )
        self.emit("  }")

    def name(self, function: FunctionPlan, buffer: Buffer, form: Form = F32_FORM) -> str:
        """The C name of a buffer."""
        if buffer is function.result and function is self.plan.head:
            return "S->logits"
        if buffer is function.x and form.kind == "f32":
            return "X"
        if buffer is function.result and form.kind == "f32":
            return "Y"
        return _identifier(buffer.value) + ("" if form.kind == "f32" else f"_{form}")

    def gather(self, function: FunctionPlan) -> None:
        """The head works on the tokens only that want logits, or that want to know the largest."""
        assert function.x is not None
        width = width_of(self.plan, function, function.x.width)
        self.emit(
            "  { /* gather the tokens that are asked for */",
            "    const int32_t *tokens = top ? S->top_tokens : S->logits_tokens;",
            "    const int32_t blocks[] = {N};",
            f"    smc_phase_begin(thread, &phase, {self.first_tasks[function.name, GATHER]}, 1, blocks);",
            "    while (smc_phase_claim(thread, &phase))",
            "      for (int32_t i = phase.begin; i < phase.end; i++)",
            f"        memcpy(X + (size_t)i * {width}, X_all + (size_t)tokens[i] * {width}, {4 * width});",
            "    if (smc_phase_end(thread, &phase)) return 1;",
            "  }",
        )

    def phase(self, function: FunctionPlan, number: int, tasks: list[Task]) -> None:
        names = ", ".join("+".join(p.slot or f"{p.kind} of {p.node.name}" for p in t.kernels()) for t in tasks)
        blocks = ", ".join(self.blocks(function, task) for task in tasks)
        condition = f"if (N > {PRIVATE_TOKENS}) " if tasks[0].private else ""
        if tasks[0].joins is not None:
            condition = f"if (!({JOINED})) "
        if all(task.blocks == "merges" for task in tasks):
            condition = "if (S->splits > 1) "
        before = function.phases[number - 1][0] if number and function.phases[number - 1][0].private else None
        self.emit(
            f"  {condition}{{ /* phase {number}: {names} */",
            f"    const int32_t blocks[] = {{{blocks}}};",
            f"    smc_phase_begin(thread, &phase, {self.first_tasks[function.name, number]}, {len(tasks)}, blocks);",
        )
        if before is None:
            self.emit("    while (smc_phase_claim(thread, &phase))")
        else:
            call = self.call(function, before, "0", self.count(function, before))
            self.emit(
                f"    int ready = N > {PRIVATE_TOKENS};",
                "    while (smc_phase_claim(thread, &phase)) {",
                "      if (!ready) {",
                f"        {call};",
                "        ready = 1;",
                "      }",
            )
        self.emit("      switch (phase.task) {")
        for index, task in enumerate(tasks):
            self.emit(f"        case {index}:")
            for write in [t for t in function.phases[number - 1] if number and t.joins is task]:
                self.join(function, write)
            self.task(function, task)
            self.emit("          break;")
        self.emit("      }", *(["    }"] if before else []), "    if (smc_phase_end(thread, &phase)) return 1;", "  }")

    def join(self, function: FunctionPlan, write: Task) -> None:
        """The write into the cache for the blocks of attention that follow: a tile's tokens by a KV head."""
        heads = self.plan.kv_heads
        call = self.call(function, write, f"t * {heads} + b % {heads}", f"t * {heads} + b % {heads} + 1")
        self.emit(
            f"          if ({JOINED})",
            "            for (int32_t b = phase.begin; b < phase.end; b++) {",
            f"              const struct smc_tile *tile = &S->tiles[b / {heads}];",
            "              for (int32_t t = tile->token; t < tile->token + tile->count; t++)",
            f"                {call};",
            "            }",
        )

    def task(self, function: FunctionPlan, task: Task) -> None:
        """The calls of the blocks that a thread has claimed."""
        if task.blocks == "chunks":
            end = f"phase.end * {CHUNK_TILES} < {self.count(function, task)} ? phase.end * {CHUNK_TILES} : "
            call = self.call(function, task, f"phase.begin * {CHUNK_TILES}", end + self.count(function, task))
            self.emit(f"          {call};")
            return
        if task.parts:
            self.chain(function, task)
        else:
            if function is self.plan.head and task.output is function.result and self.top is not None:
                self.emit(f"          if (top) {self.top_call(function, task)};", "          else")
            self.emit(f"          {self.call(function, task, 'phase.begin', 'phase.end')};")

    def chain(self, function: FunctionPlan, chain: Task) -> None:
        """As many rows at once as a thread's scratch holds the results of, for a few tokens or all."""
        [*linears, last] = chain.parts
        assert last.output is not None
        base = private_bytes(self.plan, function)
        self.scratch_bytes = max(self.scratch_bytes, base + 4 * CHAIN_FLOATS * len(linears))
        self.emit("          {")
        for place, linear in enumerate(linears):
            assert linear.output is not None
            offset = base + 4 * CHAIN_FLOATS * place
            self.emit(f"            float *{_identifier(linear.output.value)} = PRIVATE(float, {offset});")
        kernel, arguments = self._elementwise(function, last)
        self.emit(
            f"            const int32_t most = N < {CHAIN_TOKENS} ? N : {CHAIN_TOKENS};",
            f"            const int32_t step = {CHAIN_FLOATS // ROW_BLOCK} / most;",
            "            for (int32_t begin = phase.begin, end; begin < phase.end; begin = end) {",
            "              end = phase.end - begin < step ? phase.end : begin + step;",
            "              for (int32_t t = 0; t < N; t += most) {",
            "                const int32_t n = N - t < most ? N - t : most;",
            *(f"                {self.call(function, linear, 'begin', 'end')};" for linear in linears),
            f"                K->{kernel}({', '.join([*arguments, 't', 'n', 'begin', 'end'])});",
            "              }",
            "            }",
            "          }",
        )

    def top_call(self, function: FunctionPlan, task: Task) -> str:
        """The call that compares logits in the place of writing them."""
        assert self.top is not None
        _, arguments = self._linear(function, task)
        arguments[OUT] = "S->tops + thread->index * N"
        arguments[OUT_STRIDE] = str(self.vocab_size())
        return f"K->{_field(self.top)}({', '.join([*arguments, 'phase.begin', 'phase.end'])})"

    def vocab_size(self) -> int:
        """How many logits a token has."""
        logits = self.plan.head.function.node(self.plan.head.function.outputs[0]).tensor.shape[1]
        assert isinstance(logits, int)
        return logits

    def call(self, function: FunctionPlan, task: Task, begin: str, end: str) -> str:
        """The kernel's call for some of its blocks (of element-wise work: tiles)."""
        kernel, arguments = getattr(self, f"_{task.kind}", self._elementwise)(function, task)
        return f"K->{kernel}({', '.join([*arguments, begin, end])})"

    def count(self, function: FunctionPlan, task: Task) -> str:
        """How many tokens, or tiles of all tokens, a row kernel works on."""
        if task.blocks == "tokens":
            return "N"
        return f"N * ({self.width(function, task.output or task.inputs[0])} / {WIDTH_MULTIPLE})"

    def blocks(self, function: FunctionPlan, task: Task) -> str:
        if task.blocks == "rows":
            assert task.slot is not None
            return f"L->{_identifier(task.slot)}.rows / {ROW_BLOCK}"
        if task.blocks == "chunks":
            return f"({self.count(function, task)} + {CHUNK_TILES - 1}) / {CHUNK_TILES}"
        if task.blocks == "merges":
            assert isinstance(task.kernel, MergeKernel)
            return f"S->splits > 1 ? S->tile_count * {task.kernel.shape.heads} : 0"
        return {
            "tokens": "N",
            "kv": f"N * {self.plan.kv_heads}",
            "tiles": f"S->tile_count * {self.plan.kv_heads} * S->splits",
        }[task.blocks]

    def width(self, function: FunctionPlan, buffer: Buffer) -> str:
        """C expression for the padded width of a buffer."""
        return (
            f"L->{buffer.width}" if isinstance(buffer.width, str) else str(width_of(self.plan, function, buffer.width))
        )

    # ---- kernel calls

    def outputs(self, function: FunctionPlan, buffer: Buffer, forms: Sequence[Form]) -> list[str]:
        arguments = []
        for form in forms:
            name = self.name(function, buffer, form)
            arguments += [name] if form.kind == "f32" else [name, f"{name}_scales", f"{name}_sums"]
        return arguments

    def rows_from(self, function: FunctionPlan, buffer: Buffer, form: Form, token: str) -> list[str]:
        """A linear's arguments x, x_scales and x_sums: a buffer from a token on, if not 0 then a multiple of 8."""
        name = self.name(function, buffer, form)
        width = self.width(function, buffer)

        def place(per_token: str) -> str:
            return "" if token == "0" else f" + (size_t){token} * {per_token}"

        if form.kind == "f32":
            return [name + place(f"({width})"), "0", "0"]
        scales = place("1" if form.group == "token" else f"({width} / {WIDTH_MULTIPLE})")
        return [
            name + place(f"({width})"),
            f"{name}_scales{scales}",
            f"{name}_sums{place(f'({width} / {form.sum_group})')}",
        ]

    def _embedding(self, function: FunctionPlan, task: Task) -> Call:
        assert task.slot is not None and task.output is not None
        m = f"L->{_identifier(task.slot)}"
        width = self.width(function, task.output)
        place = [f"W + {m}.codes", f"W + {m}.scales", f"W + {m}.zeros"]
        kernel = f"embedding[{m}.kernel]"
        return kernel, ["S->tokens", *place, "Y", f"{m}.rows", f"{m}.columns", width]

    def _rms_norm(self, function: FunctionPlan, task: Task) -> Call:
        assert task.slot is not None and task.output is not None and isinstance(task.kernel, RmsNormKernel)
        source, out = task.inputs[0], task.output
        arguments = [
            self.name(function, source),
            f"W + L->{_identifier(task.slot)}",
            *self.outputs(function, out, task.kernel.forms),
            "N",
            str(task.node.tensor.shape[1]),
            self.width(function, out),
            _float(task.node.attributes["eps"]),
        ]
        return _field(task.kernel), arguments

    def _linear(self, function: FunctionPlan, task: Task) -> Call:
        assert task.slot is not None and task.output is not None
        m, source = f"L->{_identifier(task.slot)}", task.inputs[0]
        chained = task.output.chained
        inputs = self.rows_from(function, source, task.input_form, "t" if chained else "0")
        flags = (HAS_BIAS if task.bias else 0) | (ACCUMULATE if task.accumulate else 0) | (COMPACT if chained else 0)
        arguments = [
            *inputs,
            f"W + {m}.codes",
            f"W + {m}.scales",
            f"W + {m}.zeros",
            f"W + L->{_identifier(task.bias)}" if task.bias else "0",
            self.name(function, task.output),
            "n" if chained else "N",
            f"{m}.columns",
            self.width(function, source),
            f"{m}.rows",
            str(flags),
        ]
        return f"linear[{m}.kernel]", arguments

    def _rope_cache(self, function: FunctionPlan, task: Task) -> Call:
        assert isinstance(task.kernel, RopeKernel)
        q, key, value = task.inputs
        rotated = function.function.node(task.node.inputs[0])
        index = self.plan.rope_tables.index(rope_table(rotated)) if rotated.op == "rope" else 0
        rope = f"S->rope + (size_t){index} * N * {self.plan.head_dim}" if index else "S->rope"
        arguments = [
            *(self.name(function, b) for b in (q, key, value)),
            rope,
            "S->cache_slots",
            "S->kv",
            "S->kv",
            self.width(function, q),
            self.width(function, key),
            "(int64_t)S->kv_page_bytes",
            "L->cache",
        ]
        return f"{_field(task.kernel)}[S->kv_dtype]", arguments

    def _attention(self, function: FunctionPlan, task: Task) -> Call:
        assert isinstance(task.kernel, AttentionKernel) and task.output is not None
        arguments = [
            self.name(function, task.inputs[0]),
            "S->kv",
            "S->kv",
            "S->tables",
            "S->tiles",
            self.name(function, task.output),
            "S->partials",
            "thread->scratch",
            self.width(function, task.output),
            "(int64_t)S->kv_page_bytes",
            "L->cache",
            _float(task.node.attributes["scale"]),
            str(task.node.attributes["window"] or 0),
            "S->splits",
        ]
        return f"{_field(task.kernel)}[S->kv_dtype]", arguments

    def _merge(self, function: FunctionPlan, task: Task) -> Call:
        assert task.kernel is not None and task.output is not None
        arguments = [
            "S->tiles",
            "S->partials",
            self.name(function, task.output),
            "thread->scratch",
            self.width(function, task.output),
            str(task.node.attributes["window"] or 0),
            "S->splits",
        ]
        return _field(task.kernel), arguments

    def _quantize(self, function: FunctionPlan, task: Task) -> Call:
        assert task.kernel is not None and task.output is not None
        source = task.inputs[0]
        arguments = [
            self.name(function, source),
            *self.outputs(function, task.output, [task.input_form]),
            "N",
            self.width(function, source),
        ]
        return _field(task.kernel), arguments

    def _transform(self, function: FunctionPlan, task: Task) -> Call:
        assert task.kernel is not None and task.slot is not None and task.output is not None
        m, source = f"L->{_identifier(task.slot)}", task.inputs[0]
        arguments = [
            self.name(function, source),
            f"W + {m}.order",
            self.name(function, task.output),
            f"{m}.columns",
            self.width(function, source),
        ]
        return _field(task.kernel), arguments

    def _elementwise(self, function: FunctionPlan, task: Task) -> Call:
        assert task.output is not None and isinstance(task.kernel, ElementwiseKernel)
        inputs = [self.name(function, b) for b in task.inputs]
        arguments = [
            *inputs,
            *self.outputs(function, task.output, task.kernel.forms),
            "N",
            self.width(function, task.output),
        ]
        return _field(task.kernel), arguments

    # ---- the whole

    def run(self) -> None:
        """The calls in order; equal neighbours in a loop over their table."""
        self.emit("static void run(struct smc_thread *thread, const struct smc_step *S) {")
        two = len(self.memory.x) > 1
        self.emit(f"  float *X = ARENA(float, {self.memory.x[0]});")
        if two:
            self.emit(f"  float *Y = ARENA(float, {self.memory.x[1]});")
        self.emit(f"  if ({self.plan.embed.name}(thread, S, {self.plan.embed.name}_calls, X)) return;")
        seen: dict[str, int] = {}
        runs: list[tuple[FunctionPlan, int, int]] = []
        for function, _ in self.plan.order[1:-1]:
            index = seen.get(function.name, 0)
            seen[function.name] = index + 1
            if runs and runs[-1][0] is function:
                runs[-1] = (function, runs[-1][1], index + 1)
            else:
                runs.append((function, index, index + 1))
        for function, begin, end in runs:
            arguments = "X" if function.in_place else "X, Y"
            self.emit(
                f"  for (int32_t i = {begin}; i < {end}; i++) {{",
                "    if (smc_cancelled(thread)) return;",
                f"    if ({function.name}(thread, S, &{function.name}_calls[i], {arguments})) return;",
            )
            if not function.in_place:
                self.emit("    float *swap = X;", "    X = Y, Y = swap;")
            self.emit("  }")
        head = self.plan.head.name
        self.emit(f"  if (S->logits_count && {head}(thread, S, {head}_calls, X, 0)) return;")
        self.emit(f"  if (S->top_count) {head}(thread, S, {head}_calls, X, 1);", "}", "")

    def program(self) -> None:
        """The constants that the engine reads."""
        plan, memory, facts = self.plan, self.memory, self.plan.module.facts
        tables = [inverse_frequencies(t.head_dim, t.theta, t.scaling) for t in plan.rope_tables]
        values = ", ".join(_float(float(v)) for table in tables for v in table)
        swaps = sum(not f.in_place for f, _ in plan.order[1:-1])
        hidden = memory.x[swaps % len(memory.x)]
        logits = self.vocab_size()
        attentions = [f for f, _ in plan.order if f.attends()]
        shapes = attention_shapes(plan) or [AttentionShape(plan.kv_heads, plan.kv_heads, plan.head_dim, "f16")]
        self.emit(f"static const float frequencies[] = {{{values}}};", "", "static const struct smc_level levels[] = {")
        for level in self.target.levels:
            self.emit(f'    {{"{level.name}", "{",".join(level.features)}", &kernels_{level.name}}},')
        self.emit("};", "", "static const struct smc_task tasks[] = {")
        for task in self.tasks:
            self.emit(f"    {{{', '.join([*map(c_string, task.texts()), *map(str, task.numbers())])}}},")
        self.emit("};", "", "const struct smc_program smc_program = {")
        constants = {
            "abi_version": "SMC_ABI_VERSION",
            "name": c_string(facts.name),
            "weights_hash": c_string(self.weights_hash),
            "layers": len(attentions),
            "hidden_size": plan.hidden,
            "vocab_size": logits,
            "logits_stride": -(-logits // ROW_BLOCK) * ROW_BLOCK,
            "context_length": facts.context_length,
            "kv_heads": plan.kv_heads,
            "head_dim": plan.head_dim,
            "head_dim_padded": shapes[0].padded_dim,
            "max_step_tokens": memory.tokens,
            "finds_top": int(self.top is not None),
            "rope_tables": len(tables),
            "rope_pairs": plan.head_dim // 2,
            "rope_inverse_frequencies": "frequencies",
            "weight_bytes": self.table.total_bytes,
            "token_weight_bytes": self.table.token_bytes,
            "arena_bytes": memory.arena_bytes,
            "thread_scratch_bytes": padded(max(*(4 * s.scratch_floats for s in shapes), self.scratch_bytes), 64),
            "partial_bytes": 4 * max(s.heads * s.state_floats for s in shapes),
            "hidden_offset": hidden,
            "hidden_stride": padded_width(plan.hidden),
            "level_count": len(self.target.levels),
            "levels": "levels",
            "task_count": len(self.tasks),
            "tasks": "tasks",
            "run": "run",
        }
        self.emit(*(f"    .{name} = {value}," for name, value in constants.items()), "};")


def _field(spec: KernelSpec) -> str:
    """A kernel's member of `struct kernels`; those of both KV dtypes share one."""
    if isinstance(spec, (RopeKernel, AttentionKernel)):
        return _with_kv(spec, "f16").name().replace("_f16", "")
    return spec.name()


def _comment(text: str) -> str:
    """A checkpoint's words for a comment: they can't end it."""
    return "".join(c if c.isprintable() and c != "/" else " " for c in text)


def c_string(text: str) -> str:
    """A C string literal of any text, in UTF-8: nothing in it has a meaning in C."""
    safe = {ord(c) for c in " .-_"} | {code for code in range(128) if chr(code).isalnum()}
    return '"' + "".join(chr(b) if b in safe else f"\\{b:03o}" for b in text.encode("utf-8", "replace")) + '"'


def _float(value: float) -> str:
    text = f"{value:.9g}"
    return (text if any(c in text for c in ".e") else text + ".0") + "f"
