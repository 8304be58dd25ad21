"""A second backend, which only prints: a list of kernel launches, as a machine without phases would run them.

It stands for all that a new kind of device must say of itself: its sizes, its schedule, which kernels it needs, and its
text. It takes the plan, its domains and its arguments from codegen as they are, and has no kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from smc.codegen.build import Program, Tuned
from smc.codegen.plan.arguments import (
    Activation,
    Argmaxes,
    Argument,
    Buffer,
    Cache,
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
from smc.codegen.plan.domains import CacheWrites, Columns, Domain, Merges, Rows, Splits, Tokens
from smc.codegen.plan.plan import Plan, kernel_text
from smc.codegen.schedule.argmax import argmax
from smc.codegen.schedule.memory import MemoryPlan
from smc.codegen.schedule.schedule import Call, FunctionSchedule, Schedule
from smc.codegen.schedule.straight import straight
from smc.codegen.schedule.traits import Traits
from smc.codegen.weights import MatrixPlace, WeightTable
from smc.ir import Node
from smc.targets import Target

TRAITS = Traits(
    step_tokens=(2048, 1024, 512),
    arena_limit=256 << 20,
    chunk_tiles=1,
    private_tokens=0,
    chain_tokens=0,
    chain_floats=0,
    chain_groups=(),
)

FAST_PATHS = {"argmax": argmax}
"""Those that make sense where every kernel is a launch."""


class LaunchBackend:
    """Launches in the order of phases; between phases, each waits for those before it."""

    traits = TRAITS

    def schedule(self, plan: Plan, without: Collection[str] = ()) -> Schedule:
        """The straight schedule, and the largest logit found by the head."""
        schedule = straight(plan, self.traits)
        for name, fast_path in FAST_PATHS.items():
            if name not in without:
                schedule = fast_path(schedule)
        return schedule

    def build(
        self, program: Program, target: Target, tuned: Tuned, folder: Path, report: Callable[[float], None]
    ) -> Any:
        """There is nothing to build."""
        return None

    def program(self, program: Program, weights_hash: str, built: Any, target: Target) -> str:
        """A line per launch, and one between phases."""
        schedule, memory, table = program.schedule, program.memory, program.table
        name = schedule.plan.module.facts.name
        lines = [f"# {name}: at most {memory.tokens} tokens, arena {memory.arena_bytes} bytes"]
        for function, node in schedule.plan.order:
            lines += _Launches(schedule, schedule.of(function), node, memory, table).lines()
        return "\n".join(lines) + "\n"


class _Launches:
    """The launches of one call."""

    def __init__(
        self, schedule: Schedule, function: FunctionSchedule, node: Node, memory: MemoryPlan, table: WeightTable
    ) -> None:
        self.schedule, self.function, self.node, self.memory, self.table = schedule, function, node, memory, table
        self.sizes = schedule.plan.sizes(function.plan, node)

    def lines(self) -> Iterator[str]:
        """Of every phase; then the gather in front of the head."""
        yield f"{self.function.plan.name} {self.node.name}"
        for phase in self.function.phases:
            when = f"  if {phase.condition.value}: " if phase.condition else "  "
            for task in phase.tasks:
                for call in task.calls:
                    yield f"{when}{self.launch(call, task.blocks)}"
                if task.argmax:
                    yield f"  or {self.launch(task.argmax, task.blocks)}"
            yield "  wait"
        if self.function.gather and self.node is self.schedule.plan.order[-2][1]:
            names = ", ".join(buffer.value for buffer in self.function.gather.buffers)
            yield f"  gather wanted rows of {names}"

    def launch(self, call: Call, blocks: Domain) -> str:
        """A kernel, the blocks of its grid, and its arguments."""
        arguments = ", ".join(f"{name}={self.argument(a)}" for name, a in call.arguments.items())
        return f"{kernel_text(call.kernel)}<{self.grid(blocks)}>({arguments})"

    def grid(self, blocks: Domain) -> str:
        """How many blocks, for n tokens."""
        match blocks:
            case Tokens():
                return "n"
            case Columns(buffer):
                return f"n*{self.sizes.width(buffer.width) // 32}"
            case Rows(slot):
                return str(self.place(slot).rows // 32)
            case CacheWrites(heads):
                return f"tiles*{heads}"
            case Splits(heads):
                return f"tiles*{heads}*splits"
            case Merges(heads):
                return f"tiles*{heads}"
        raise AssertionError(blocks)

    def place(self, slot: str) -> MatrixPlace:
        """Where a matrix lies."""
        return self.table.matrices[self.sizes.slots[slot]]

    def argument(self, argument: Argument) -> str:
        """An argument in words of this machine."""
        match argument:
            case Activation(buffer, part):
                return self.address(buffer, part)
            case Stride(buffer):
                return str(self.sizes.width(buffer.width))
            case Weight(slot, part):
                return f"weights+{getattr(self.place(slot), part)}"
            case WeightSize(slot, side):
                return str(getattr(self.place(slot), side))
            case Vector(slot):
                return f"weights+{self.table.vectors[self.sizes.slots[slot]]}"
            case Number(value):
                return f"{value:g}"
            case Cache(shape, part):
                return f"cache[{self.schedule.plan.kv_group(shape)}].{part}"
            case Rope(table):
                return "null" if table is None else f"rope[{self.schedule.plan.rope_tables().index(table)}]"
            case TokenCount() | StepField() | PrefetchDistance() | Tiles() | Scratch() | Argmaxes() | Null():
                return str(argument)

    def address(self, buffer: Buffer, part: str) -> str:
        """Where in the arena; the buffers between calls and the logits have names."""
        plan = self.function.plan
        if buffer is plan.result:
            return "logits" if plan is self.schedule.plan.head else "x" if plan.in_place else "y"
        if buffer is plan.x and plan is not self.schedule.plan.head:
            return "x"
        return f"arena+{getattr(self.memory.places[buffer], part)}"
