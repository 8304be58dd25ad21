"""The constants of a program in C: what differs between the calls of a function, and what the engine reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from smc.codegen.c_literals import c_float, c_identifier, c_string
from smc.codegen.host.kernel_table import top_kernel
from smc.codegen.kernels.layout import ROW_BLOCK, MatrixLayout, padded
from smc.codegen.memory import MemoryPlan, symbol_values
from smc.codegen.plan import (
    FunctionPlan,
    Plan,
    Task,
    attention_shapes,
    embedding_kernels,
    kv_shape,
    linear_kernels,
    padded_width,
)
from smc.codegen.profile import TaskProfile
from smc.codegen.weights import WeightTable
from smc.ir import inverse_frequencies
from smc.targets import Target


def call_table(plan: Plan, table: WeightTable, function: FunctionPlan) -> list[str]:
    """What differs between the calls of a function: places of weights, widths, its part of the KV cache, and where the
    weights of the next phases are."""
    symbols = function.symbols()
    slots = [slot for slot in function.function.parameters() if function.function.users(slot.name)]
    matrices = {slot.name for slot in slots if len(slot.tensor.shape) == 2}
    name = f"{function.name}_call"
    sizes = f"[{len(function.phases)}][{most_streams(plan)}]"
    lines = [f"struct {name} {{", f"  struct smc_stream ahead{sizes}; /* by phase: of the next one with weights */"]
    for slot in slots:
        kind = "struct matrix" if slot.name in matrices else "uint64_t"
        lines.append(f"  {kind} {c_identifier(slot.name)};")
    lines += [f"  int32_t {symbol}; /* padded */" for symbol in symbols]
    attention = function.attention()
    group = plan.kv_groups[kv_shape(attention)] if attention else []
    if attention:
        lines.append("  int64_t cache; /* KV heads in front of its own in a KV page */")
    lines += ["};", "", f"static const struct {name} {name}s[{len(function.calls)}] = {{"]
    for index, call in enumerate(function.calls):
        names = call.attributes["parameters"]
        values = [
            _matrix(plan, table, function, names[s.name]) if s.name in matrices else str(table.vectors[names[s.name]])
            for s in slots
        ]
        dims = symbol_values(plan, function, index)
        values += [str(padded_width(dims[symbol])) for symbol in symbols]
        if attention:
            values.append(str(group.index(call) * kv_shape(attention).kv_heads))
        ahead = _braces(_braces(streams or ["{0}"]) for streams in _streams_ahead(plan, table, function, index))
        values.insert(0, ahead)
        lines.append(f"    {{{', '.join(values)}}},")
    return [*lines, "};", ""]


def _braces(values: Iterable[str]) -> str:
    """An initializer."""
    return f"{{{', '.join(values)}}}"


def most_streams(plan: Plan) -> int:
    """How many tasks with weights a phase has at most."""
    return max(sum(task.blocks == "rows" for task in phase) for f in plan.functions() for phase in f.phases)


def _streams_ahead(plan: Plan, table: WeightTable, function: FunctionPlan, index: int) -> list[list[str]]:
    """Of every phase of a call: the initializers of `struct smc_stream` of the next phase with weights, in this call or
    the one after it; none where there is no such phase."""
    call = function.calls[index]
    position = next(i for i, (_, other) in enumerate(plan.order) if other is call)
    phases = [
        [_stream(plan, table, other.attributes["parameters"], task) for task in phase if task.blocks == "rows"]
        for function, other in plan.order[position : position + 2]
        for phase in function.phases
    ]
    return [next(filter(None, phases[number + 1 :]), []) for number in range(len(function.phases))]


def _stream(plan: Plan, table: WeightTable, names: Mapping[str, str], task: Task) -> str:
    """Where a linear, or the first one of a chain, has its codes. Blocks are those of a step of one token."""
    assert task.slot is not None
    name = names[task.slot]
    place, encoding = table.matrices[name], plan.module.parameters[name].encoding
    row_blocks = place.rows // ROW_BLOCK
    together = task.rows_at_once() // ROW_BLOCK if task.parts else 1
    block_bytes = MatrixLayout(encoding, place.rows, place.columns).codes_bytes // row_blocks
    return f"{{{place.codes}, {-(-row_blocks // together)}, {block_bytes * together}}}"


def _matrix(plan: Plan, table: WeightTable, function: FunctionPlan, name: str) -> str:
    """The initializer of a `struct matrix`; its kernel is one of those that look up rows, or that multiply."""
    place, encoding = table.matrices[name], plan.module.parameters[name].encoding
    kernels = embedding_kernels(plan) if function is plan.embed else linear_kernels(plan)
    index = [kernel.encoding for kernel in kernels].index(encoding)
    places = (place.codes, place.scales, place.zeros, place.order, place.rows, place.columns, index)
    return f"{{{', '.join(map(str, places))}}}"


def engine_tables(plan: Plan, target: Target, tasks: Sequence[TaskProfile]) -> list[str]:
    """What `smc_program` points to: frequencies, levels and tasks."""
    lines: list[str] = []
    for number, rope in enumerate(plan.rope_tables):
        frequencies = (float(v) for v in inverse_frequencies(rope.head_dim, rope.theta, rope.scaling))
        lines += [f"static const float frequencies_{number}[] = {{{', '.join(map(c_float, frequencies))}}};", ""]
    if plan.rope_tables:
        lines.append("static const struct smc_rope_table rope_tables[] = {")
        lines += [f"    {{{r.head_dim // 2}, 1.0f, frequencies_{n}}}," for n, r in enumerate(plan.rope_tables)]
        lines += ["};", ""]
    if plan.kv_groups:
        lines.append("static const struct smc_kv_shape kv_groups[] = {")
        for shape, calls in plan.kv_groups.items():
            lines.append(f"    {{{len(calls)}, {shape.kv_heads}, {shape.padded_dim}, {shape.window}}},")
        lines += ["};", ""]
    lines.append("static const struct smc_level levels[] = {")
    for level in target.levels:
        lines.append(f'    {{"{level.name}", "{",".join(level.features)}", &kernels_{level.name}}},')
    lines += ["};", "", "static const struct smc_task tasks[] = {"]
    for task in tasks:
        lines.append(f"    {{{', '.join([*map(c_string, task.texts()), *task.numbers()])}}},")
    return [*lines, "};", ""]


def program_constants(
    plan: Plan,
    memory: MemoryPlan,
    table: WeightTable,
    weights_hash: str,
    target: Target,
    tasks: Sequence[TaskProfile],
) -> list[str]:
    """`smc_program` (the engine's program.h)."""
    facts, shapes = plan.module.facts, attention_shapes(plan)
    swaps = sum(not f.in_place for f, _ in plan.order[1:-1])
    constants = {
        "abi_version": "SMC_ABI_VERSION",
        "name": c_string(facts.name),
        "weights_hash": c_string(weights_hash),
        "layers": sum(map(len, plan.kv_groups.values())),
        "hidden_size": plan.hidden,
        "vocab_size": plan.vocab_size,
        "logits_stride": padded(plan.vocab_size, ROW_BLOCK),
        "context_length": facts.context_length,
        "kv_group_count": len(plan.kv_groups),
        "kv_groups": "kv_groups" if plan.kv_groups else "0",
        "max_step_tokens": memory.tokens,
        "finds_top": int(top_kernel(plan) is not None),
        "rope_table_count": len(plan.rope_tables),
        "rope_tables": "rope_tables" if plan.rope_tables else "0",
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
        "run": "run",
    }
    lines = [f"    .{name} = {value}," for name, value in constants.items()]
    return ["const struct smc_program smc_program = {", *lines, "};"]
