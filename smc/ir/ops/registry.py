"""The declaration of ops, and their registry.

An op is declared once, in a file of its own in this folder, as a torch function::

    @op(ranks={"x": 2, "weight": 1}, result=_result)
    def rms_norm(x: Tensor, weight: Weight, *, eps: float) -> Tensor:
        '''What it computes.'''

Its positional parameters are the op's inputs. Those with the default None are optional: a node's flag of that name says
whether it has them. Its keyword parameters are the op's attributes, with their defaults. `result` has the same
parameters, but types in place of tensors, and gives the type of the result. torch is imported where it is used: the ir
works without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from smc.ir.types import Dim, TensorType, TupleType, Type

if TYPE_CHECKING:
    from torch import Tensor

Attributes = Mapping[str, Any]
Function = TypeVar("Function", bound=Callable[..., Any])
Value = TypeVar("Value")

OPS: dict[str, Op] = {}
"""Every op by name."""


class TypeFault(ValueError):
    """Inputs or attributes that an op does not take; the message names them."""


class Weight(Protocol):
    """A parameter for the torch functions of ops: decoded values, and how its encoding changes inputs."""

    @property
    def values(self) -> Tensor:
        """float32, in the parameter's shape."""

    def rounded(self, x: Tensor) -> Tensor:
        """Inputs, float32 [n, columns], after the transform and rounding of this matrix."""

    def matrix(self, index: int) -> Weight:
        """One of the matrices of a stack."""


@dataclass(frozen=True)
class Op:
    """One op: its inputs and attributes, the type of its result, and its meaning in torch.

    inputs: names, the optional ones last. attributes: the names with a default, and the default. required: the others.
    ranks: how many dims inputs must have. cached: inputs that later tokens of a sequence read again, [n, kv_heads ·
    head_dim]; an op with such inputs attends. increasing: whether an element-wise op keeps the order of numbers.
    kernel: false for an op that only the reference computes. The docstring of `compute` defines the op.
    """

    name: str
    inputs: tuple[str, ...]
    optional: tuple[str, ...]
    required: tuple[str, ...]
    attributes: Attributes
    ranks: Mapping[str, int]
    result: Callable[..., Type] = field(repr=False)
    compute: Callable[..., Any] = field(repr=False)
    cached: tuple[str, ...] = ()
    takes_tuples: bool = False
    increasing: bool = False
    kernel: bool = True

    def complete(self, attributes: Attributes) -> dict[str, Any]:
        """The attributes, with defaults for those left out; TypeFault if one is missing or unknown."""
        known = {*self.optional, *self.required, *self.attributes}
        for name in attributes:
            if name not in known:
                raise TypeFault(f"{self.name} has no attribute {name}")
        for name in self.required:
            if name not in attributes:
                raise TypeFault(f"{self.name} needs the attribute {name}")
        return {**attributes, **{name: value for name, value in self.defaults.items() if name not in attributes}}

    @property
    def defaults(self) -> dict[str, Any]:
        """The values of attributes and flags that are left out."""
        return {**self.attributes, **dict.fromkeys(self.optional, False)}

    def given(self, attributes: Attributes) -> list[str]:
        """The names of the inputs that a node with these attributes has, in order."""
        return [name for name in self.inputs if name not in self.optional or attributes[name]]

    def bind(self, values: Sequence[Value], attributes: Attributes) -> dict[str, Value | None]:
        """A node's inputs by name, None for a missing optional one. TypeFault if their number is wrong."""
        names = self.given(attributes)
        if len(names) != len(values):
            raise TypeFault(f"{self.name} takes {len(names)} inputs, not {len(values)}")
        return {**dict.fromkeys(self.optional), **dict(zip(names, values, strict=True))}

    def call(self, function: Callable[..., Any], values: Sequence[Any], attributes: Attributes) -> Any:
        """Call a function that has this op's parameters with a node's values and attributes."""
        attributes = self.complete(attributes)
        others = {name: value for name, value in attributes.items() if name not in self.optional}
        return function(**self.bind(values, attributes), **others)


def op(
    *,
    result: Callable[..., Type],
    ranks: Mapping[str, int] | None = None,
    **facts: Any,
) -> Callable[[Function], Function]:
    """Decorator that declares an op by its torch function; see above. The op has the function's name.

    facts: the rarely used fields of `Op` (cached, takes_tuples, increasing, kernel).
    """

    def declare(function: Function) -> Function:
        register(function.__name__, function, result, ranks or {}, **facts)
        return function

    return declare


def register(
    name: str, compute: Callable[..., Any], result: Callable[..., Type], ranks: Mapping[str, int], **facts: Any
) -> None:
    """Put an op into the registry: what `op` does for functions that have its name."""
    if name in OPS:
        raise ValueError(f"there are two ops named {name}")
    parameters = inspect.signature(compute).parameters.values()
    inputs = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    OPS[name] = Op(
        name,
        inputs=tuple(p.name for p in inputs),
        optional=tuple(p.name for p in inputs if p.default is not p.empty),
        required=tuple(p.name for p in keywords if p.default is p.empty),
        attributes={p.name: p.default for p in keywords if p.default is not p.empty},
        ranks=ranks,
        result=result,
        compute=compute,
        **facts,
    )


def find(name: str) -> Op:
    """The op of this name; TypeFault if there is none."""
    if name not in OPS:
        raise TypeFault(f"there is no op {name!r}")
    return OPS[name]


def infer_type(name: str, inputs: Sequence[Type], attributes: Attributes) -> Type:
    """The result type of an op; TypeFault if the inputs or attributes do not fit it."""
    found = find(name)
    attributes = found.complete(attributes)
    if not found.takes_tuples and any(isinstance(t, TupleType) for t in inputs):
        raise TypeFault(f"{name} takes tensors: project a tuple first")
    for input_name, value in found.bind(inputs, attributes).items():
        rank = found.ranks.get(input_name)
        if rank is not None and isinstance(value, TensorType) and len(value.shape) != rank:
            raise TypeFault(f"{input_name} of {name} must have {rank} dims, not {value}")
    result: Type = found.call(found.result, inputs, attributes)
    return result


def same(name: str, a: Dim, b: Dim, what: str) -> None:
    """Raise TypeFault if two dims of an op's inputs differ that must be equal."""
    if a != b:
        raise TypeFault(f"{name}: {what} differ, {a} and {b}")
