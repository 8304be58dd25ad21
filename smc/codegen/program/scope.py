"""The C expressions for arguments of kernels in a function of a program."""

from __future__ import annotations

from dataclasses import dataclass, field

from smc.codegen.c_literals import c_float, c_identifier
from smc.codegen.kernels.abi import F32_FORM
from smc.codegen.plan.arguments import (
    Activation,
    Argmaxes,
    Argument,
    Buffer,
    Cache,
    FirstRow,
    Null,
    Number,
    PrefetchDistance,
    Rope,
    Scratch,
    StepField,
    Stride,
    Tiles,
    TokenCount,
    Vector,
    Weight,
    WeightSize,
)
from smc.codegen.plan.work import WIDTH_MULTIPLE
from smc.codegen.schedule.schedule import FunctionSchedule, Schedule


@dataclass(frozen=True)
class Range:
    """The tokens of a call: `count` from `first` on, both C; first None: from the begin. inner: buffers that hold these
    tokens alone. expert: in C, whose rows these are, and whose matrices of stacks they are multiplied with."""

    count: str = "N"
    first: str | None = None
    inner: tuple[Buffer, ...] = field(default=())
    expert: str | None = None


ALL_TOKENS = Range()


class Scope:
    """The variables of a function: N tokens, its call's places L in the weights W, the step S, the thread, its buffers,
    and the tiles of attention."""

    def __init__(self, schedule: Schedule, function: FunctionSchedule) -> None:
        self.schedule, self.function = schedule, function

    @property
    def is_head(self) -> bool:
        """Whether the function makes logits."""
        return self.function is self.schedule.head

    def name(self, buffer: Buffer) -> str:
        """The C name of a buffer."""
        if buffer is self.function.plan.result:
            return "S->logits" if self.is_head else "X" if buffer is self.function.plan.x else "Y"
        if buffer is self.function.plan.x:
            return "X"
        return c_identifier(buffer.value) + ("" if buffer.form == F32_FORM else f"_{buffer.form}")

    def width(self, buffer: Buffer) -> str:
        """The padded width of a buffer."""
        if isinstance(buffer.width, str):
            return f"L->{buffer.width}"
        return str(self.schedule.plan.width_of(self.function.plan, buffer))

    def expression(self, argument: Argument, tokens: Range = ALL_TOKENS) -> str:
        """An argument of a call for some tokens."""
        match argument:
            case Activation(buffer, part):
                return self._activation(buffer, part, tokens)
            case Stride(buffer):
                return self.width(buffer)
            case TokenCount():
                return tokens.count
            case FirstRow():
                return tokens.first or "0"
            case Weight(slot, part):
                place = f"W + L->{c_identifier(slot)}.{part}"
                if tokens.expert is not None:
                    place += f" + (size_t){tokens.expert} * L->{c_identifier(slot)}.each"
                return f"(const int32_t *)({place})" if part == "order" else place
            case WeightSize(slot, side):
                return f"L->{c_identifier(slot)}.{side}"
            case Vector(slot):
                return f"(const float *)(W + L->{c_identifier(slot)})"
            case Number(value):
                return c_float(value) if isinstance(value, float) else str(value)
            case Null():
                return "0"
            case StepField(name):
                return f"S->{name}"
            case PrefetchDistance():
                return "S->prefetch_distance"
            case Tiles():
                return "tiles"
            case Cache():
                return self._cache(argument)
            case Rope():
                return self._rope(argument)
            case Scratch():
                return "(float *)thread->scratch"
            case Argmaxes():
                return "S->argmaxes + thread->index * N"

    def _activation(self, buffer: Buffer, part: str, tokens: Range) -> str:
        name = self.name(buffer) + ("" if part == "data" else f"_{part}")
        # Of what has no rows for experts, all is there.
        is_whole = tokens.first is None or (tokens.expert is not None and buffer.routing is None)
        if is_whole or buffer in tokens.inner:
            return name
        width = self.width(buffer)
        groups = "1" if buffer.form.group == "token" else f"({width} / {WIDTH_MULTIPLE})"
        per_token = {"data": f"({width})", "scales": groups, "sums": f"({width} / {buffer.form.sum_group})"}
        return f"{name} + (size_t){tokens.first} * {per_token[part]}"

    def _rope(self, rope: Rope) -> str:
        """The cosines and sines of the step's tokens, which lie table by table."""
        tables = self.schedule.plan.rope_tables()
        before = 0 if rope.table is None else sum(2 * t.pairs for t in tables[: tables.index(rope.table)])
        return f"S->rope + (size_t)N * {before}" if before else "S->rope"

    def _cache(self, cache: Cache) -> str:
        """The pages of a group of layers, or the call's place in them."""
        member = f"S->kv[{self.schedule.plan.kv_group(cache.shape)}].{cache.part}"
        return {"first_head": "L->cache", "page_bytes": f"(int64_t){member}"}.get(cache.part, member)
