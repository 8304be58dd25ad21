"""Memory plan: where in the arena, or in a thread's scratch, every buffer of a function lies while it is needed."""

from __future__ import annotations

from dataclasses import dataclass

from smc.codegen.kernels.abi import CHAIN_FLOATS, Form
from smc.codegen.kernels.layout import padded
from smc.codegen.plan import PRIVATE_TOKENS, Buffer, FunctionPlan, Plan, Task, padded_width
from smc.ir.types import Dim

ALIGNMENT = 64
STEP_TOKENS = (512, 256, 128, 64, 32, 16)
ARENA_LIMIT = 24 << 20
"""Steps take as many tokens as keep the arena below this many bytes: inside the 50 MiB that an engine may use, and
better in cache."""


CHAINED_BYTES = 4 * CHAIN_FLOATS
"""What each linear of a chain leaves in a thread's scratch."""


@dataclass(frozen=True)
class Place:
    """Byte offsets in the arena of one form: values or codes, and for codes their scales and sums."""

    data: int
    scales: int = 0
    sums: int = 0


@dataclass
class MemoryPlan:
    """Places of all buffers for steps of at most `tokens` tokens; `x` are the buffers between functions.

    scratch_bytes: of a thread's scratch, what buffers take at most.
    """

    tokens: int
    arena_bytes: int
    x: list[int]
    places: dict[tuple[str, Buffer, Form], Place]
    scratch_bytes: int


def plan_memory(plan: Plan) -> MemoryPlan:
    """The plan with the longest steps that keep the arena small."""
    for tokens in STEP_TOKENS:
        memory = _plan_for(plan, tokens)
        if memory.arena_bytes <= ARENA_LIMIT:
            break
    return memory


def width_of(plan: Plan, function: FunctionPlan, width: Dim) -> int:
    """Padded width of a buffer: of the widest call, where calls differ."""
    if isinstance(width, int):
        return padded_width(width)
    return max(
        padded_width(symbol_values(plan, function, call_index)[width]) for call_index in range(len(function.calls))
    )


def symbol_values(plan: Plan, function: FunctionPlan, call_index: int) -> dict[str, int]:
    """The dims that a call gives to the function's symbols."""
    slots = function.calls[call_index].attributes["parameters"]
    values = {}
    for slot in function.function.parameters():
        for symbol, dim in zip(slot.tensor.shape, plan.module.parameters[slots[slot.name]].shape, strict=True):
            if isinstance(symbol, str):
                values[symbol] = dim
    return values


def _plan_for(plan: Plan, tokens: int) -> MemoryPlan:
    row = padded(tokens * padded_width(plan.hidden) * 4, ALIGNMENT)
    count = 1 if all(f.in_place for f in plan.blocks) else 2
    places: dict[tuple[str, Buffer, Form], Place] = {}
    top = common = row * count
    for function in plan.functions():
        top = max(top, common + _plan_function(plan, function, tokens, common, places))
    scratch_bytes = max(_scratch_bytes(plan, function) for function in plan.functions())
    return MemoryPlan(tokens, top, [row * i for i in range(count)], places, scratch_bytes)


def _plan_function(
    plan: Plan, function: FunctionPlan, tokens: int, base: int, places: dict[tuple[str, Buffer, Form], Place]
) -> int:
    """First fit by first use: a place is free again in the phase after its last use. Returns the bytes used."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for number, phase in enumerate(function.phases):
        for task in phase:
            for buffer in task.buffers():
                first, _ = lives.get(buffer, (number, number))
                lives[buffer] = (first, number + task.moves())
    local = list(function.buffers)
    if function is plan.head and function.x is not None:
        local.append(function.x)  # the gathered rows
        lives[function.x] = (-1, lives[function.x][1])
    taken: list[tuple[int, int, int, int]] = []  # first phase, last phase, begin, end
    for buffer in sorted(local, key=lambda b: lives[b]):
        first, last = lives[buffer]
        width = width_of(plan, function, buffer.width)
        sizes = [(form, _form_bytes(form, tokens, width)) for form in buffer.forms]
        size = sum(sum(parts) for _, parts in sizes)
        offset = 0
        for begin, end in sorted((b, e) for since, until, b, e in taken if not (until < first or last < since)):
            if offset + size <= begin:
                break
            offset = max(offset, end)
        taken.append((first, last, offset, offset + size))
        offset += base
        for form, parts in sizes:
            starts = [offset + sum(parts[:i]) for i in range(len(parts))]
            places[function.name, buffer, form] = Place(*starts)
            offset += sum(parts)
    return max((end for *_, end in taken), default=0)


def private_places(plan: Plan, function: FunctionPlan, buffer: Buffer) -> tuple[dict[Form, Place], int]:
    """Where in a thread's scratch a private buffer's forms lie, and how many bytes they are."""
    places, offset = {}, 0
    for form in buffer.forms:
        parts = _form_bytes(form, PRIVATE_TOKENS, width_of(plan, function, buffer.width))
        places[form] = Place(*(offset + sum(parts[:i]) for i in range(len(parts))))
        offset += sum(parts)
    return places, offset


def chained_places(plan: Plan, function: FunctionPlan, chain: Task) -> list[int]:
    """Where in a thread's scratch lies what each linear of a chain leaves: behind the function's private buffers."""
    begin = _private_bytes(plan, function)
    return [begin + CHAINED_BYTES * place for place in range(len(chain.parts) - 1)]


def _private_bytes(plan: Plan, function: FunctionPlan) -> int:
    sizes = (private_places(plan, function, buffer)[1] for buffer in function.buffers if buffer.private)
    return padded(max(sizes, default=0), ALIGNMENT)


def _scratch_bytes(plan: Plan, function: FunctionPlan) -> int:
    chains = [task for phase in function.phases for task in phase if task.parts]
    ends = (place + CHAINED_BYTES for chain in chains for place in chained_places(plan, function, chain))
    return max([_private_bytes(plan, function), *ends])


def _form_bytes(form: Form, tokens: int, width: int) -> list[int]:
    if form.kind == "f32":
        return [padded(tokens * width * 4, ALIGNMENT)]
    scales = tokens if form.group == "token" else tokens * width // 32
    return [padded(n, ALIGNMENT) for n in (tokens * width, scales * 4, tokens * width // form.sum_group * 4)]
