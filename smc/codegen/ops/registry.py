"""The registry of lowerings, by the name of the op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from smc.codegen.kernels.abi import Form
from smc.codegen.plan.lowering import FunctionLowering
from smc.errors import InputError
from smc.ir import Function, Node, Parameter

LOWERINGS: dict[str, Lowering] = {}
"""Every op that has kernels."""


class Lowering:
    """How one op becomes operations on buffers: subclass it, and name the op with `lowers`."""

    def input_forms(self, node: Node, parameter: Callable[[str], Parameter]) -> Mapping[int, Form]:
        """By place: the inputs that a node does not read as floats, where its parameters (by slot) decide that.

        Calls that agree in this share a function. InputError for parameters that the op's kernels can't have.
        """
        return {}

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """Add a node's operations to the function."""
        raise NotImplementedError


AnyLowering = TypeVar("AnyLowering", bound=type[Lowering])


def lowers(op: str, **options: Any) -> Callable[[AnyLowering], AnyLowering]:
    """Decorator: the class lowers this op; options are given to it. It may be used again for a further op."""

    def register(cls: AnyLowering) -> AnyLowering:
        if op in LOWERINGS:
            raise ValueError(f"there are two lowerings of the op {op}")
        LOWERINGS[op] = cls(**options)
        return cls

    return register


def find_lowering(function: Function, node: Node) -> Lowering:
    """The lowering of a node; InputError if its op has no kernel."""
    if node.op not in LOWERINGS:
        raise InputError(f"there is no kernel for the op {node.op} yet ({function.name}: {node.name})")
    return LOWERINGS[node.op]
