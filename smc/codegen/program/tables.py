"""The constants of a program in C: what differs between the calls of a function, and what the engine reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from smc.codegen.c_literals import c_float, c_identifier, c_string
from smc.codegen.kernels.layout import ROW_BLOCK, MatrixLayout, padded
from smc.codegen.plan.domains import Rows
from smc.codegen.plan.plan import Plan
from smc.codegen.plan.work import CallSizes, padded_width
from smc.codegen.program.kernel_table import table_of
from smc.codegen.schedule.memory import MemoryPlan
from smc.codegen.schedule.profile import TaskProfile
from smc.codegen.schedule.schedule import FunctionSchedule, Phase, Schedule, Task
from smc.codegen.weights import WeightTable
from smc.ir import Encoding, Node, ceil_div
from smc.targets import Target


def call_table(schedule: Schedule, table: WeightTable, function: FunctionSchedule, constant: str) -> list[str]:
    """What differs between the calls of a function: places of weights, widths, its part of the KV cache, and where the
    weights of the next phases are. constant: what it is declared with."""
    plan, f = schedule.plan, function.plan
    symbols = f.symbols()
    slots = [slot for slot in f.function.parameters() if f.function.users(slot.name)]
    matrices = {slot.name for slot in slots if len(slot.tensor.shape) > 1}
    prefetches = any(phase.prefetches for phase in function.phases)
    name = f"{f.name}_call"
    lines = [f"struct {name} {{"]
    if prefetches:
        sizes = f"[{len(function.phases)}][{most_streams(schedule)}]"
        lines.append(f"  struct smc_stream prefetch{sizes}; /* by phase: of the next one with weights */")
    for slot in slots:
        kind = "struct matrix" if slot.name in matrices else "uint64_t"
        lines.append(f"  {kind} {c_identifier(slot.name)};")
    lines += [f"  int32_t {symbol}; /* padded */" for symbol in symbols]
    shape = f.cache()
    group = plan.kv_groups()[shape] if shape else []
    if shape:
        lines.append("  int64_t cache; /* KV heads in front of its own in a KV page */")
    lines += ["};", "", f"{constant} struct {name} {name}s[{len(f.calls)}] = {{"]
    kernels = _kernel_numbers(plan, function)
    for call in f.calls:
        names, dims = call.attributes["parameters"], plan.sizes(f, call)
        values = [_braces(_prefetched_streams(schedule, table, function, call))] if prefetches else []
        values += [
            _matrix(table, dims, s.name, kernels) if s.name in matrices else str(table.vectors[names[s.name]])
            for s in slots
        ]
        values += [str(dims.width(symbol)) for symbol in symbols]
        if shape:
            values.append(str(group.index(call) * shape.kv_heads))
        lines.append(f"    {{{', '.join(values)}}},")
    return [*lines, "};", ""]


def _braces(values: Iterable[str]) -> str:
    """An initializer."""
    return f"{{{', '.join(values)}}}"


def _reads_rows(phase: Phase) -> list[Task]:
    """The tasks of a phase that read rows of matrices."""
    return [task for task in phase.tasks if isinstance(task.blocks, Rows)]


def most_streams(schedule: Schedule) -> int:
    """How many tasks with weights a phase has at most."""
    return max(len(_reads_rows(phase)) for function in schedule.functions for phase in function.phases)


def _prefetched_streams(schedule: Schedule, table: WeightTable, function: FunctionSchedule, call: Node) -> list[str]:
    """Of every phase of a call: the initializers of `struct smc_stream` of the next phase with weights, in this call or
    the one after it; an empty one where there is no such phase."""
    plan = schedule.plan
    position = next(i for i, (_, other) in enumerate(plan.order) if other is call)
    phases = [
        [_stream(table, plan.sizes(f, other), task) for task in _reads_rows(phase)]
        for f, other in plan.order[position : position + 2]
        for phase in schedule.of(f).phases
    ]
    found = [next(filter(None, phases[number + 1 :]), ["{0}"]) for number in range(len(function.phases))]
    return [_braces(streams) for streams in found]


def _stream(table: WeightTable, sizes: CallSizes, task: Task) -> str:
    """Where a linear, or the first one of a chain, has its codes. Blocks are those of a step of one token."""
    assert isinstance(task.blocks, Rows)
    parameter = sizes.parameter(task.blocks.slot)
    place = table.matrices[parameter.name]
    row_blocks = place.rows // ROW_BLOCK
    together = task.rows_at_once // ROW_BLOCK
    block_bytes = MatrixLayout(parameter.encoding, place.rows, place.columns).codes_bytes // row_blocks
    return f"{{{place.codes}, {ceil_div(row_blocks, together)}, {block_bytes * together}}}"


def _kernel_numbers(plan: Plan, function: FunctionSchedule) -> dict[Encoding, int]:
    """By encoding: the number of a kernel in its table."""
    kernels = plan.embedding_kernels() if function.plan is plan.embed else plan.linear_kernels()
    tables: dict[str, list[Encoding]] = {}
    for kernel in kernels:
        tables.setdefault(table_of(kernel), []).append(kernel.encoding)
    return {encoding: number for table in tables.values() for number, encoding in enumerate(table)}


def _matrix(table: WeightTable, sizes: CallSizes, slot: str, kernels: dict[Encoding, int]) -> str:
    """The initializer of a `struct matrix`."""
    parameter = sizes.parameter(slot)
    place = table.matrices[parameter.name]
    number = kernels[parameter.encoding]
    places = (place.codes, place.scales, place.zeros, place.order, place.each, place.rows, place.columns, number)
    return _braces(map(str, places))


def engine_tables(plan: Plan, target: Target, tasks: Sequence[TaskProfile], kernels: str) -> list[str]:
    """What `smc_program` points to: frequencies, levels and tasks. kernels: in front of a level's name, the variable
    with its kernels."""
    lines: list[str] = []
    ropes, groups = plan.rope_tables(), plan.kv_groups()
    for number, rope in enumerate(ropes):
        frequencies = ", ".join(map(c_float, rope.frequencies))
        lines += [f"static const float frequencies_{number}[] = {{{frequencies}}};", ""]
        if rope.short_context:
            short = ", ".join(map(c_float, rope.short_frequencies))
            lines += [f"static const float short_frequencies_{number}[] = {{{short}}};", ""]
    if ropes:
        lines.append("static const struct smc_rope_table rope_tables[] = {")
        for number, rope in enumerate(ropes):
            short = f"{rope.short_context}, short_frequencies_{number}" if rope.short_context else "0, 0"
            lines.append(f"    {{{rope.pairs}, {c_float(rope.magnitude)}, frequencies_{number}, {short}}},")
        lines += ["};", ""]
    if groups:
        lines.append("static const struct smc_kv_shape kv_groups[] = {")
        for shape, calls in groups.items():
            lines.append(f"    {{{len(calls)}, {shape.kv_heads}, {shape.padded_dim}, {shape.window}}},")
        lines += ["};", ""]
    lines.append("static const struct smc_level levels[] = {")
    for level in target.levels:
        lines.append(f'    {{"{level.name}", "{",".join(level.features)}", &{kernels}{level.name}}},')
    lines += ["};", "", "static const struct smc_task tasks[] = {"]
    for task in tasks:
        lines.append(f"    {{{', '.join([*map(c_string, task.texts()), *task.numbers()])}}},")
    return [*lines, "};", ""]


def program_constants(
    schedule: Schedule,
    memory: MemoryPlan,
    table: WeightTable,
    weights_hash: str,
    target: Target,
    tasks: Sequence[TaskProfile],
    run: str,
) -> list[str]:
    """`smc_program` (the engine's program.h). run: the function that threads run, or 0."""
    plan = schedule.plan
    facts, shapes = plan.module.facts, plan.attention_shapes()
    groups, ropes = plan.kv_groups(), plan.rope_tables()
    swaps = sum(not f.in_place for f, _ in plan.order[1:-1])
    constants = {
        "abi_version": "SMC_ABI_VERSION",
        "name": c_string(facts.name),
        "weights_hash": c_string(weights_hash),
        "layers": sum(map(len, groups.values())),
        "hidden_size": plan.hidden,
        "vocab_size": plan.vocab_size,
        "logits_stride": padded(plan.vocab_size, ROW_BLOCK),
        "context_length": facts.context_length,
        "positions": plan.positions,
        "kv_group_count": len(groups),
        "kv_groups": "kv_groups" if groups else "0",
        "max_step_tokens": memory.tokens,
        "finds_argmax": int(schedule.argmax() is not None),
        "rope_table_count": len(ropes),
        "rope_tables": "rope_tables" if ropes else "0",
        "weight_bytes": table.total_bytes,
        "token_weight_bytes": table.token_bytes,
        "arena_bytes": memory.arena_bytes,
        "thread_scratch_bytes": padded(max([memory.scratch_bytes, *(4 * s.scratch_floats for s in shapes)]), 64),
        "partial_bytes": 4 * max((s.heads * s.state_floats for s in shapes), default=0),
        "hidden_offset": memory.x[swaps % len(memory.x)],
        "hidden_stride": padded_width(plan.hidden),
        "level_count": len(target.levels),
        "levels": "levels",
        "task_count": len(tasks),
        "tasks": "tasks",
        "run": run,
    }
    lines = [f"    .{name} = {value}," for name, value in constants.items()]
    return ["const struct smc_program smc_program = {", *lines, "};"]
