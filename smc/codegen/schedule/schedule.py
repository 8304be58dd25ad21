"""The schedule's dataclasses. All are frozen: a fast path makes a new schedule from the one that it gets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from smc.codegen.kernels.layout import ROW_BLOCK
from smc.codegen.plan.arguments import Argument, Buffer, KvShape
from smc.codegen.plan.domains import Domain, Merges
from smc.codegen.plan.plan import FunctionPlan, KernelChoice, Operation, Plan
from smc.codegen.schedule.traits import Traits


class Condition(Enum):
    """Which steps have a phase, if not all do."""

    MANY_TOKENS = "steps of more tokens than threads make private results for"
    SPLIT_CACHE = "steps that split the cache"
    NOT_JOINED = "steps in which attention does not write into the cache itself"


@dataclass(frozen=True, eq=False)
class Call:
    """A kernel with its arguments, by name. operations: what it does of the plan."""

    kernel: KernelChoice
    arguments: Mapping[str, Argument]
    operations: tuple[Operation, ...]
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]

    @classmethod
    def of(cls, operation: Operation) -> Call:
        """The call that an operation of the plan says."""
        return cls(operation.kernel, operation.arguments, (operation,), operation.reads, operation.writes)

    @property
    def operation(self) -> Operation:
        """The first of the operations: the one that the call is named after."""
        return self.operations[0]


@dataclass(frozen=True, eq=False)
class Task:
    """Kernel calls on blocks that threads share.

    calls: one, or a chain: several linears and an element-wise op on their results, which a thread takes the same rows
    through, without a barrier between; the results stay in its scratch.
    blocks: what blocks are; of a chain `rows_at_once` rows by some tokens. joined: what the blocks do first themselves
    in steps that don't have it as a phase (joins.py). argmax: the call that finds the largest logits in the place of
    writing them (argmax.py).
    """

    calls: tuple[Call, ...]
    blocks: Domain
    rows_at_once: int = ROW_BLOCK
    joined: Task | None = None
    argmax: Call | None = None

    @property
    def is_chain(self) -> bool:
        """Several calls."""
        return len(self.calls) > 1

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All operations of the plan that it does, except those that it joins."""
        return tuple(operation for call in self.calls for operation in call.operations)

    @property
    def inner(self) -> tuple[Buffer, ...]:
        """What the calls of a chain hand to the last one, some rows at a time, in a thread's scratch."""
        return tuple(buffer for call in self.calls[:-1] for buffer in call.writes)

    @property
    def reads(self) -> tuple[Buffer, ...]:
        """Buffers that it reads, each once."""
        reads = dict.fromkeys(buffer for call in self.calls for buffer in call.reads)
        return tuple(buffer for buffer in reads if buffer not in self.inner)

    @property
    def writes(self) -> tuple[Buffer, ...]:
        """Buffers that it writes, each once."""
        writes = dict.fromkeys(buffer for call in self.calls for buffer in call.writes)
        return tuple(buffer for buffer in writes if buffer not in self.inner)

    def buffers(self) -> tuple[Buffer, ...]:
        """Buffers that it reads or writes, with what it joins."""
        joined = self.joined.buffers() if self.joined else ()
        return (*self.reads, *self.writes, *joined)


@dataclass(frozen=True, eq=False)
class Phase:
    """Independent tasks; at its end, all threads wait for each other.

    condition: which steps have it; None: all. first: what every thread computes for itself before its first block, in
    its scratch, in steps without the phase before (private.py).
    prefetches: a thread that waits at the end prefetches the weights of the next phase that reads any (prefetch.py).
    prefetched_caches: where the next phase writes keys and values: a thread prefetches these places first.
    """

    tasks: tuple[Task, ...]
    condition: Condition | None = None
    first: Task | None = None
    prefetches: bool = False
    prefetched_caches: tuple[KvShape, ...] = ()

    def buffers(self) -> tuple[Buffer, ...]:
        """Buffers that it needs in some steps."""
        return tuple(b for task in (*self.tasks, *([self.first] if self.first else [])) for b in task.buffers())


@dataclass(frozen=True)
class Gather:
    """Where the rows of requested tokens move to the front, in order; the others are dropped.

    phase: the one before which that happens, or how many there are. buffers: of floats, whose rows move.
    """

    phase: int
    buffers: tuple[Buffer, ...]


@dataclass(frozen=True)
class FunctionSchedule:
    """A function as phases.

    gather: only of the function whose last call is the one before the head, and in that call. narrow: earlier tasks
    that work only for it: in that call they do only tiles with requested tokens (tail.py).
    """

    plan: FunctionPlan
    phases: tuple[Phase, ...]
    gather: Gather | None = None
    narrow: frozenset[Task] = frozenset()

    def tasks(self) -> list[Task]:
        """All tasks in order, without what is joined."""
        return [task for phase in self.phases for task in phase.tasks]

    def readers(self, buffer: Buffer) -> list[Task]:
        """The tasks that read a buffer."""
        return [task for task in self.tasks() if buffer in task.reads]

    def private(self) -> list[Task]:
        """The tasks that threads repeat in short steps."""
        return [phase.first for phase in self.phases if phase.first is not None]

    def chains(self) -> list[Task]:
        """The tasks of several calls."""
        return [task for task in self.tasks() if task.is_chain]

    def buffers(self) -> list[Buffer]:
        """The buffers in the arena, in order of use: all but its input and its result."""
        used = dict.fromkeys(buffer for task in self.tasks() for buffer in task.buffers())
        return [buffer for buffer in used if buffer not in (self.plan.x, self.plan.result)]


@dataclass(frozen=True)
class Schedule:
    """A program: its functions in the plan's order."""

    plan: Plan
    traits: Traits
    functions: tuple[FunctionSchedule, ...]

    def of(self, function: FunctionPlan) -> FunctionSchedule:
        """The schedule of a function."""
        return next(f for f in self.functions if f.plan is function)

    @property
    def head(self) -> FunctionSchedule:
        """The function that computes logits."""
        return self.of(self.plan.head)

    def change(self, rule: Callable[[FunctionSchedule, Traits], FunctionSchedule]) -> Schedule:
        """The schedule with every function changed by a rule."""
        return replace(self, functions=tuple(rule(function, self.traits) for function in self.functions))

    def argmax(self) -> Call | None:
        """The call that finds the largest logits, if there is one."""
        return next((task.argmax for task in self.head.tasks() if task.argmax is not None), None)


def phases_of(tasks: Sequence[Task]) -> tuple[Phase, ...]:
    """Tasks as phases: each phase has all tasks that depend only on earlier phases."""
    owner = {operation: task for task in tasks for operation in task.operations}
    levels: dict[Task, int] = {}

    def level(task: Task) -> int:
        if task not in levels:
            before = {owner[other] for operation in task.operations for other in operation.after} - {task}
            levels[task] = 1 + max(map(level, before), default=-1)
        return levels[task]

    by_level = sorted(tasks, key=level)
    return tuple(_phase(tuple(group)) for _, group in itertools.groupby(by_level, level))


def _phase(tasks: tuple[Task, ...]) -> Phase:
    merges = all(isinstance(task.blocks, Merges) for task in tasks)
    return Phase(tasks, Condition.SPLIT_CACHE if merges else None)
