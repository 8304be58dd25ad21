"""Plan: a program as functions of phases, ended by barriers; a phase is tasks, each a kernel on some buffers.

planner.py makes it; memory.py says where the buffers lie, and host/ writes it all down.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from smc.codegen.kernels.abi import F32_FORM, AttentionShape, Form
from smc.codegen.kernels.layout import ROW_BLOCK, padded
from smc.codegen.kernels.specs import AttentionKernel, EmbeddingKernel, KernelSpec, LinearKernel, RopeKernel
from smc.errors import InputError
from smc.ir import Function, Module, Node, Parameter, RopeScaling
from smc.ir.types import Dim

WIDTH_MULTIPLE = 32
"""Rows of activations are padded to this many floats."""

PRIVATE_TOKENS = 2
"""Steps of so few tokens spare a barrier where every thread can make a small result for itself."""


@dataclass(eq=False)
class Buffer:
    """Activations of one value: [tokens, width] as float32 and/or codes. Several values may share one, in place.

    private: in short steps in every thread's scratch. chained: always there, some rows at a time.
    """

    value: str
    width: Dim
    forms: list[Form] = field(default_factory=list)
    private: bool = False
    chained: bool = False

    def need(self, form: Form) -> None:
        """Also keep the value in this form."""
        if form not in self.forms:
            self.forms.append(form)


@dataclass(eq=False)
class Task:
    """One kernel on some buffers, or "linear", whose kernel the layer's table chooses, or a "chain".

    A chain is several linears and an element-wise op on their results (`parts`, in this order): a thread takes the same
    rows through all of them, without a barrier between; the results stay in its scratch.
    private: in short steps not a phase of its own; who reads the result makes it first, every thread for itself.
    joins: attention that does this, the write into the cache, itself where no other of its blocks reads what it writes.
    blocks: what its blocks are: "tokens", "chunks" (256 columns, token by token), "rows" (32 weight rows; of a chain
    `rows_at_once` by some tokens), "kv" (attention tile × KV head), "tiles" (attention tile × KV head × split of
    the cache), "merges" (tile × query head, but only where the cache is split).
    """

    kind: str
    node: Node
    blocks: str
    kernel: KernelSpec | None = None
    inputs: list[Buffer] = field(default_factory=list)
    output: Buffer | None = None
    slot: str | None = None
    bias: str | None = None
    accumulate: bool = False
    input_form: Form = F32_FORM
    after: list[Task] = field(default_factory=list)
    phase: int = 0
    parts: list[Task] = field(default_factory=list)
    private: bool = False
    joins: Task | None = None

    def kernels(self) -> list[Task]:
        """The task, or its parts: one kernel each."""
        return self.parts or [self]

    def rows_at_once(self) -> int:
        """How many rows go through a chain at least: 32, or as many as share an activation scale."""
        assert self.parts and self.output is not None
        # A result that nobody reads has no form.
        return max((form.group for form in self.output.forms if form.group != "token"), default=ROW_BLOCK)

    def moves(self) -> bool:
        """In some steps the task runs in the next phase."""
        return self.private or self.joins is not None

    def is_by_token(self) -> bool:
        """Whether it takes the rows of any tokens for itself, and nothing else of the step."""
        return self.blocks in ("tokens", "chunks", "rows") and self.kind != "embedding"

    def buffers(self) -> list[Buffer]:
        """Everything that is read or written."""
        return [b for task in self.kernels() for b in [*task.inputs, *([task.output] if task.output else [])]]


@dataclass(frozen=True)
class Tail:
    """The end of a block, where each token is by itself: the last block's is left out for unwanted tokens.

    phase: its first one, or how many there are. buffers: of floats, what it, or who is next, reads of earlier phases.
    """

    phase: int
    buffers: list[Buffer]


@dataclass
class FunctionPlan:
    """A function as phases. `x` is its activation input, `result` its output (the same buffer where in place)."""

    name: str
    function: Function
    phases: list[list[Task]]
    buffers: list[Buffer]
    x: Buffer | None
    result: Buffer
    calls: list[Node] = field(default_factory=list)

    @property
    def in_place(self) -> bool:
        """The result lies where the input was."""
        return self.x is self.result

    def tail(self) -> Tail:
        """From the phase on that is as early as can be."""
        tail = Tail(len(self.phases), [self.result])
        for number in reversed(range(len(self.phases))):
            if not all(task.is_by_token() for task in self.phases[number]):
                break
            before = {b for phase in self.phases[:number] for task in phase for b in task.buffers()} | {self.x}
            tasks = [part for phase in self.phases[number:] for task in phase for part in task.kernels()]
            read = [b for t in tasks for b in [*t.inputs, *([t.output] if t.output and t.accumulate else [])]]
            buffers = [b for b in dict.fromkeys([*read, self.result]) if b in before]
            if all(buffer.forms == [F32_FORM] for buffer in buffers):
                tail = Tail(number, buffers)
        return tail

    def before_tail(self) -> list[Task]:
        """What is made in front of the tail for it alone: attention, and queries. In the last block it is made for the
        tiles that have wanted tokens."""
        tail = self.tail().phase
        readers: dict[Buffer, list[Task]] = {}
        for number, phase in enumerate(self.phases):
            for task in phase:
                for buffer in task.inputs:
                    readers.setdefault(buffer, []).extend([task] if number < tail else [])
        found: list[Task] = []
        for task in (task for phase in reversed(self.phases[:tail]) for task in phase):
            by_tile = task.kind in ("attention", "merge") or (task.kind == "linear" and not task.accumulate)
            if by_tile and task.output in readers and all(reader in found for reader in readers[task.output]):
                found.append(task)
        return found

    def symbols(self) -> list[str]:
        """Names of the dims that differ between calls, sorted."""
        dims = (d for node in self.function.parameters() for d in node.tensor.shape)
        return sorted({d for d in dims if isinstance(d, str)})

    def attention(self) -> Task | None:
        """Its attention, if it has one: then its calls have K and V of their own."""
        return next((t for phase in self.phases for t in phase if isinstance(t.kernel, AttentionKernel)), None)


@dataclass(frozen=True)
class RopeTable:
    """One table of rotary frequencies."""

    head_dim: int
    theta: float
    scaling: RopeScaling | None


@dataclass(frozen=True)
class KvShape:
    """What layers have in common whose K and V share pages. window: cached tokens that a token sees; 0: all."""

    kv_heads: int
    padded_dim: int
    window: int


@dataclass
class Plan:
    """The whole program."""

    module: Module
    embed: FunctionPlan
    blocks: list[FunctionPlan]
    head: FunctionPlan
    order: list[tuple[FunctionPlan, Node]]
    rope_tables: list[RopeTable]
    hidden: int

    def functions(self) -> list[FunctionPlan]:
        """All function plans, each once."""
        return [self.embed, *self.blocks, self.head]

    @property
    def last(self) -> FunctionPlan:
        """The function whose last call is the one before the head."""
        return self.order[-2][0]

    @cached_property
    def kv_groups(self) -> dict[KvShape, list[Node]]:
        """The calls with K and V of each shape, in order: a group of layers that share pages."""
        groups: dict[KvShape, list[Node]] = {}
        for function, call in self.order:
            if task := function.attention():
                groups.setdefault(kv_shape(task), []).append(call)
        return groups

    def kv_group(self, task: Task) -> int:
        """The number of the group whose K and V an attention, or the write for it, works on."""
        return list(self.kv_groups).index(kv_shape(task))

    @property
    def vocab_size(self) -> int:
        """How many logits a token has."""
        logits = self.head.function.node(self.head.function.outputs[0]).tensor.shape[1]
        assert isinstance(logits, int)
        return logits

    def matrices(self) -> list[Parameter]:
        """Every matrix parameter once, in order of first use."""
        return list(self._parameters(matrices=True))

    def vectors(self) -> list[Parameter]:
        """Every vector parameter (norms, biases) once."""
        return list(self._parameters(matrices=False))

    def _parameters(self, matrices: bool) -> Iterable[Parameter]:
        seen: dict[str, Parameter] = {}
        for call, _ in self.module.calls():
            for name in call.attributes["parameters"].values():
                parameter = self.module.parameters[name]
                if (len(parameter.shape) > 1) == matrices:
                    seen.setdefault(name, parameter)
        return seen.values()


def rope_table(rope: Node) -> RopeTable:
    """The frequency table that a rope node reads."""
    return RopeTable(rope.attributes["head_dim"], rope.attributes["theta"], rope.attributes["scaling"])


def kv_shape(task: Task) -> KvShape:
    """The shape of the K and V of a task of attention."""
    assert isinstance(task.kernel, AttentionKernel | RopeKernel)
    shape = task.kernel.shape
    return KvShape(shape.kv_heads, shape.padded_dim, task.node.attributes["window"] or 0)


def attention_shapes(plan: Plan) -> list[AttentionShape]:
    """The distinct attentions of a program."""
    tasks = (task for function in plan.functions() for phase in function.phases for task in phase)
    return list(dict.fromkeys(t.kernel.shape for t in tasks if isinstance(t.kernel, AttentionKernel)))


def linear_kernels(plan: Plan) -> list[LinearKernel]:
    """The distinct linear kernels of a program, in order of first use: the index is what layer tables hold."""
    return list(dict.fromkeys(LinearKernel(p.encoding) for p in _slot_parameters(plan, "linear")))


def embedding_kernels(plan: Plan) -> list[EmbeddingKernel]:
    """The embedding kernel of the program."""
    parameters = _slot_parameters(plan, "embedding")
    for parameter in parameters:
        if parameter.encoding.permuted or parameter.encoding.rotation:
            raise InputError(
                f"{parameter.name} is {parameter.encoding}, which no embedding can be: the pass untie gives the head"
                " a matrix of its own"
            )
    return list(dict.fromkeys(EmbeddingKernel(p.encoding) for p in parameters))


def _slot_parameters(plan: Plan, kind: str) -> list[Parameter]:
    return [
        plan.module.parameters[call.attributes["parameters"][task.slot]]
        for function, call in plan.order
        for phase in function.phases
        for group in phase
        for task in group.kernels()
        if task.kind == kind and task.slot is not None
    ]


def multiplied(plan: Plan) -> list[Parameter]:
    """The matrices that a token multiplies, each once: all but tables that are only looked up."""
    return list({p.name: p for p in _slot_parameters(plan, "linear")}.values())


def padded_width(width: int) -> int:
    """Floats of an activation row."""
    return padded(width, WIDTH_MULTIPLE)
