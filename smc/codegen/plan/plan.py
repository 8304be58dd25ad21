"""The plan's dataclasses: operations, the functions that they make up, and the calls of functions in order.

planner.py makes a plan; a backend makes a schedule of it (smc/codegen/schedule).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from smc.codegen.kernels.abi import AttentionShape, Kind, KVDtype
from smc.codegen.kernels.signature import Signature
from smc.codegen.kernels.specs import (
    EMBEDDING_SIGNATURE,
    AttentionKernel,
    EmbeddingKernel,
    KernelSpec,
    LinearKernel,
    RopeKernel,
    linear_signature,
)
from smc.codegen.plan.arguments import Argument, Buffer, Cache, KvShape, Rope
from smc.codegen.plan.domains import Domain
from smc.codegen.plan.work import NO_WORK, CallSizes, Work, padded_width
from smc.ir import Function, Module, Node, Parameter, RopeTable

KV_DTYPES: tuple[KVDtype, ...] = ("f16", "f32", "i8")
"""In the order of the engine's smc_kv_dtype."""


@dataclass(frozen=True)
class BySlot:
    """The kernel of a kind for the encoding that a call's matrix has in a slot. inputs: the kind of form that it reads,
    for kernels that read floats and those that read codes have different parameters."""

    kind: type[LinearKernel] | type[EmbeddingKernel]
    slot: str
    inputs: Kind = "f32"

    def spec(self, parameter: Parameter) -> KernelSpec:
        """The kernel for a matrix."""
        return self.kind(parameter.encoding)

    def signature(self) -> Signature:
        """The parameters, the same for all encodings."""
        return linear_signature(self.inputs) if self.kind is LinearKernel else EMBEDDING_SIGNATURE

    def __str__(self) -> str:
        return f"{self.kind.__name__}[{self.slot}]"


@dataclass(frozen=True)
class ByCacheDtype:
    """The kernel for the dtype that the KV cache has when a program runs."""

    any: RopeKernel | AttentionKernel

    def specs(self) -> list[KernelSpec]:
        """The kernel for each dtype, in their order."""
        return [replace(self.any, shape=replace(self.any.shape, kv_dtype=dtype)) for dtype in KV_DTYPES]

    def signature(self) -> Signature:
        """The parameters, the same for all dtypes."""
        return self.any.signature()

    @property
    def name(self) -> str:
        return replace(self.any, shape=replace(self.any.shape, kv_dtype="f16")).name().replace("_f16", "")

    def __str__(self) -> str:
        return f"{self.name}[cache dtype]"


KernelChoice = KernelSpec | BySlot | ByCacheDtype


def kernel_text(kernel: KernelChoice) -> str:
    """A kernel's name for people."""
    return str(kernel) if isinstance(kernel, BySlot | ByCacheDtype) else kernel.name()


@dataclass(eq=False)
class Operation:
    """One kernel on some buffers.

    name: the value that it computes, or works for; kind: what it does, in a word; both only for people. domain: what
    its blocks are. arguments: by the names of the kernel's parameters. reads, writes: a buffer that is changed in place
    is in both. after: the operations that must be finished first. slots: those whose parameters it has.
    repeatable: it reads little and writes only its result, so that each reader may compute it.
    increasing: it changes numbers one by one and keeps their order.
    work: what it does besides reading and writing its buffers; None: too little to count, buffers included.
    """

    name: str
    kind: str
    kernel: KernelChoice
    domain: Domain
    arguments: Mapping[str, Argument]
    reads: tuple[Buffer, ...] = ()
    writes: tuple[Buffer, ...] = ()
    slots: tuple[str, ...] = ()
    repeatable: bool = False
    increasing: bool = False
    work: Callable[[CallSizes], Work] | None = lambda sizes: NO_WORK
    after: list[Operation] = field(default_factory=list)

    @property
    def updates(self) -> bool:
        """It adds to what it writes."""
        return any(buffer in self.reads for buffer in self.writes)

    def __str__(self) -> str:
        return self.slots[0] if self.slots else f"{self.kind} of {self.name}"


@dataclass
class FunctionPlan:
    """A function as operations. `x` is its activation input, `result` its output (the same buffer if it works in
    place).

    calls: those of `main` that run it, which differ in their parameters.
    """

    name: str
    function: Function
    operations: list[Operation]
    x: Buffer | None
    result: Buffer
    calls: list[Node] = field(default_factory=list)

    @property
    def in_place(self) -> bool:
        """The result lies where the input was."""
        return self.x is self.result

    def symbols(self) -> list[str]:
        """Names of the dims that differ between calls, sorted."""
        dims = (d for node in self.function.parameters() for d in node.tensor.shape)
        return sorted({d for d in dims if isinstance(d, str)})

    def attentions(self) -> list[AttentionShape]:
        """The attentions that it has."""
        choices = (o.kernel.any for o in self.operations if isinstance(o.kernel, ByCacheDtype))
        return [kernel.shape for kernel in choices if isinstance(kernel, AttentionKernel)]

    def cache(self) -> KvShape | None:
        """The shape of the keys and values that its calls have of their own, if it attends."""
        arguments = (argument for operation in self.operations for argument in operation.arguments.values())
        return next((argument.shape for argument in arguments if isinstance(argument, Cache)), None)


@dataclass
class Plan:
    """The whole program: an embedding, blocks and a head, and the calls of these functions in order."""

    module: Module
    embed: FunctionPlan
    blocks: list[FunctionPlan]
    head: FunctionPlan
    order: list[tuple[FunctionPlan, Node]]

    def functions(self) -> list[FunctionPlan]:
        """All function plans, each once."""
        return [self.embed, *self.blocks, self.head]

    @property
    def last(self) -> FunctionPlan:
        """The function whose last call is the one before the head."""
        return self.order[-2][0]

    @property
    def hidden(self) -> int:
        """Width of the activations between calls."""
        width = self.embed.result.width
        assert isinstance(width, int)
        return width

    @property
    def positions(self) -> int:
        """How many positions have a learned embedding; 0: the model has no table of positions."""
        tables = self.module.parameters_of("positions")
        return min((self.module.parameters[name].shape[0] for name in tables), default=0)

    @property
    def vocab_size(self) -> int:
        """How many logits a token has."""
        width = self.head.result.width
        assert isinstance(width, int)
        return width

    def operations(self) -> Iterator[Operation]:
        """All operations, function by function."""
        return (operation for function in self.functions() for operation in function.operations)

    def attention_shapes(self) -> list[AttentionShape]:
        """The distinct attentions."""
        return _distinct(shape for function in self.functions() for shape in function.attentions())

    def rope_tables(self) -> list[RopeTable]:
        """The distinct tables of frequencies, in order of use."""
        arguments = (a for operation in self.operations() for a in operation.arguments.values())
        return _distinct(a.table for a in arguments if isinstance(a, Rope) and a.table is not None)

    def kv_groups(self) -> dict[KvShape, list[Node]]:
        """The calls with K and V of each shape, in order: a group of layers that share pages."""
        groups: dict[KvShape, list[Node]] = {}
        for function, call in self.order:
            if shape := function.cache():
                groups.setdefault(shape, []).append(call)
        return groups

    def kv_group(self, shape: KvShape) -> int:
        """The number of the group of a shape."""
        return list(self.kv_groups()).index(shape)

    def sizes(self, function: FunctionPlan, call: Node) -> CallSizes:
        """The sizes that a call of a function has."""
        slots = call.attributes["parameters"]
        symbols = {}
        for slot in function.function.parameters():
            for symbol, dim in zip(slot.tensor.shape, self.module.parameters[slots[slot.name]].shape, strict=True):
                if isinstance(symbol, str):
                    symbols[symbol] = dim
        return CallSizes(self.module, slots, symbols)

    def width_of(self, function: FunctionPlan, buffer: Buffer) -> int:
        """Padded width of a buffer: of the widest call, where calls differ."""
        if isinstance(buffer.width, int):
            return padded_width(buffer.width)
        return max(self.sizes(function, call).width(buffer.width) for call in function.calls)

    def chosen(self, kind: type[LinearKernel] | type[EmbeddingKernel]) -> list[Parameter]:
        """The matrices that choose kernels of a kind, in order of use, each once per use."""
        return [
            self.module.parameters[call.attributes["parameters"][operation.kernel.slot]]
            for function, call in self.order
            for operation in function.operations
            if isinstance(operation.kernel, BySlot) and operation.kernel.kind is kind
        ]

    def linear_kernels(self) -> list[LinearKernel]:
        """The distinct linear kernels, in order of first use: the index is what layer tables hold."""
        return _distinct(LinearKernel(p.encoding) for p in self.chosen(LinearKernel))

    def embedding_kernels(self) -> list[EmbeddingKernel]:
        """The distinct embedding kernels, likewise."""
        return _distinct(EmbeddingKernel(p.encoding) for p in self.chosen(EmbeddingKernel))

    def multiplied(self) -> list[Parameter]:
        """The matrices that a token multiplies, each once: all but tables that are only looked up."""
        return list({p.name: p for p in self.chosen(LinearKernel)}.values())

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


Item = TypeVar("Item")


def _distinct(items: Iterable[Item]) -> list[Item]:
    return list(dict.fromkeys(items))
