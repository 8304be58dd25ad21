"""What every task of a program reads, writes and multiplies: the constants that profiles turn into GB/s and GMAC/s."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field

from smc.codegen.kernels.abi import Form
from smc.codegen.kernels.layout import MatrixLayout
from smc.codegen.kernels.specs import AttentionKernel, MergeKernel, RopeKernel
from smc.codegen.memory import symbol_values
from smc.codegen.plan import Buffer, FunctionPlan, Plan, Task, padded_width
from smc.codegen.weights import WeightTable
from smc.ir import Parameter, matrix_shape

GATHER = -1
"""A phase of the last block and of the head: it gathers the rows of the tokens that something is asked of."""


@dataclass
class Work:
    """The members of `struct smc_work` in the engine's program.h."""

    weight_bytes: int = 0
    token_bytes: int = 0
    token_macs: int = 0
    cache_reads: int = 0
    cache_macs: int = 0

    def __str__(self) -> str:
        return f"{{{', '.join(map(str, astuple(self)))}}}"


@dataclass
class TaskProfile:
    """The members of `struct smc_task` in the engine's program.h: all calls of the task's function together."""

    function: str
    phase: int
    name: str
    kernel: str
    all: Work = field(default_factory=Work)
    wanted: Work = field(default_factory=Work)
    cache_writes: int = 0
    kv_group: int = 0
    head: bool = False
    integer: bool = False
    encodings: list[str] = field(default_factory=list)

    def texts(self) -> list[str]:
        """The members that are text: function, name, and the kernel with the encodings that it meets."""
        return [self.function, self.name, f"{self.kernel} {', '.join(self.encodings)}".rstrip()]

    def numbers(self) -> list[str]:
        """The members after the texts, as C."""
        rest = [self.cache_writes, self.kv_group, int(self.head), int(self.integer)]
        return [str(self.all), str(self.wanted), *map(str, rest)]


def profile_tasks(plan: Plan, table: WeightTable) -> list[TaskProfile]:
    """The tasks of a program in the order of functions and phases, those of a phase next to each other."""
    profiles = []
    for function in plan.functions():
        head = function is plan.head
        tail = function.tail().phase if function is plan.last else len(function.phases)
        narrow = function.before_tail() if function is plan.last else []
        gathers = 0 if head else tail if function is plan.last else None
        for number, phase in enumerate([*function.phases, []]):
            if number == gathers:  # in some steps, and it moves little
                profiles.append(TaskProfile(function.name, GATHER, "gather", "copy", head=head))
            for task in phase:
                kinds = "+".join(dict.fromkeys(part.kind for part in task.kernels()))
                name = "+".join(part.slot or part.node.name for part in task.kernels() if part.slot or not task.parts)
                profile = TaskProfile(function.name, number, name, kinds, head=head)
                for index, call in enumerate(function.calls):
                    some = head or ((number >= tail or task in narrow) and call is plan.order[-2][1])
                    for part in task.kernels():
                        _add_call(profile, profile.wanted if some else profile.all, plan, function, part, index)
                profiles.append(profile)
    return profiles


def _add_call(profile: TaskProfile, work: Work, plan: Plan, function: FunctionPlan, task: Task, index: int) -> None:
    if isinstance(task.kernel, MergeKernel):
        return  # runs in some steps only, and what it moves is in cache
    symbols = symbol_values(plan, function, index)
    names = function.calls[index].attributes["parameters"]
    read = task.input_form if task.kind == "linear" else Form("f32")
    work.token_bytes += sum(_form_bytes(read, _width(buffer, symbols)) for buffer in task.inputs if not buffer.chained)
    if task.output is not None and not task.output.chained:
        width = _width(task.output, symbols)
        forms = [task.input_form] if task.kind == "quantize" else task.output.forms
        if task.kind in ("linear", "embedding"):
            forms = [Form("f32")]
        work.token_bytes += sum(_form_bytes(form, width) for form in forms) + (4 * width if task.accumulate else 0)
    if task.slot is not None:
        _add_weights(profile, work, task, plan.module.parameters[names[task.slot]])
    if task.bias is not None:
        work.weight_bytes += 4 * padded_width(plan.module.parameters[names[task.bias]].shape[0])
    if isinstance(task.kernel, (RopeKernel, AttentionKernel)):
        shape = task.kernel.shape
        both = 2 * shape.kv_heads * shape.padded_dim
        profile.kv_group = plan.kv_group(task)
        if isinstance(task.kernel, RopeKernel):
            profile.cache_writes += both
        else:
            work.cache_reads += both
            work.cache_macs += 2 * shape.heads * shape.head_dim


def _add_weights(profile: TaskProfile, work: Work, task: Task, parameter: Parameter) -> None:
    if task.kind == "rms_norm":
        work.weight_bytes += 4 * padded_width(parameter.shape[0])
        return
    rows, columns = matrix_shape(parameter.shape)
    if task.kind == "transform":
        work.weight_bytes += 4 * padded_width(columns) * parameter.encoding.permuted
        return
    total = MatrixLayout(parameter.encoding, rows, columns).total_bytes
    if str(parameter.encoding) not in profile.encodings:
        profile.encodings.append(str(parameter.encoding))
    if task.kind == "embedding":
        work.token_bytes += total // rows
    else:
        work.weight_bytes += total
        work.token_macs += rows * columns
        profile.integer = task.input_form.kind == "i8"


def _width(buffer: Buffer, symbols: dict[str, int]) -> int:
    return padded_width(symbols[buffer.width] if isinstance(buffer.width, str) else buffer.width)


def _form_bytes(form: Form, width: int) -> int:
    """Bytes of a token's activations: values, or codes with their scales and sums."""
    if form.kind == "f32":
        return 4 * width
    scales = 1 if form.group == "token" else width // 32
    return width + 4 * scales + 4 * width // form.sum_group
