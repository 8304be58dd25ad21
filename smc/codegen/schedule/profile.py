"""What every task of a program reads, writes and multiplies: the constants that profiles turn into GB/s and GMAC/s."""

from __future__ import annotations

from dataclasses import dataclass

from smc.codegen.plan.work import NO_WORK, CallSizes, Work
from smc.codegen.schedule.schedule import Call, FunctionSchedule, Schedule, Task

GATHER = -1
"""A phase of the last block and of the head, which gathers the rows of tokens whose output is requested."""


@dataclass
class TaskProfile:
    """The members of `struct smc_task` in the engine's program.h: all calls of the task's function together.

    all: the work of calls on all tokens of a step; wanted: that of calls on requested tokens only.
    """

    function: str
    phase: int
    name: str
    kernel: str
    all: Work = NO_WORK
    wanted: Work = NO_WORK
    kv_group: int = 0
    head: bool = False

    @property
    def work(self) -> Work:
        """Of all calls."""
        return self.all + self.wanted

    def texts(self) -> list[str]:
        """The members that are text: function, name, and the kernel with the encodings of its matrices."""
        return [self.function, self.name, f"{self.kernel} {', '.join(self.work.encodings)}".rstrip()]

    def numbers(self) -> list[str]:
        """The members after the texts, as C."""
        work = self.work
        rest = [work.cache_writes, self.kv_group, int(self.head), int(work.integer)]
        return [_members(self.all), _members(self.wanted), *map(str, rest)]


def _members(work: Work) -> str:
    """The initializer of a `struct smc_work`."""
    members = (work.weight_bytes, work.token_bytes, work.token_macs, work.cache_reads, work.cache_macs)
    experts = (work.chosen_bytes, work.expert_bytes)
    return f"{{{', '.join(map(str, members + experts))}}}"


def profile_tasks(schedule: Schedule) -> list[TaskProfile]:
    """The tasks of a program in the order of functions and phases, those of a phase next to each other."""
    profiles = []
    for function in schedule.functions:
        head = function is schedule.head
        gathers = 0 if head else function.gather.phase if function.gather else None
        for number in range(len(function.phases) + 1):
            if number == gathers:  # in some steps, and it moves little
                profiles.append(TaskProfile(function.plan.name, GATHER, "gather", "copy", head=head))
            if number < len(function.phases):
                profiles += [_profile(schedule, function, number, task) for task in function.phases[number].tasks]
    return profiles


def _profile(schedule: Schedule, function: FunctionSchedule, number: int, task: Task) -> TaskProfile:
    head = function is schedule.head
    operations = [call.operation for call in task.calls]
    names = [operation.slots[0] for operation in operations if operation.slots]
    kinds = dict.fromkeys(operation.kind for operation in operations)
    name = "+".join(names) or operations[0].name
    profile = TaskProfile(function.plan.name, number, name, "+".join(kinds), head=head)
    for node in function.plan.calls:
        sizes = schedule.plan.sizes(function.plan, node)
        work = sum((_work(call, task, sizes) for call in task.calls), NO_WORK)
        late = function.gather is not None and (number >= function.gather.phase or task in function.narrow)
        if head or (late and node is schedule.plan.order[-2][1]):
            profile.wanted += work
        else:
            profile.all += work
    if shape := profile.work.cache:
        profile.kv_group = schedule.plan.kv_group(shape)
    return profile


def _work(call: Call, task: Task, sizes: CallSizes) -> Work:
    """What a call does, with the activations that it reads and writes outside of a thread's scratch."""
    works = [operation.work for operation in call.operations]
    if None in works:
        return NO_WORK
    buffers = [buffer for buffer in (*call.reads, *call.writes) if buffer not in task.inner]
    moved = Work(token_bytes=sum(b.rows * sizes.activations(b.form, b.width) for b in buffers))
    return sum((work(sizes) for work in works if work is not None), moved)
