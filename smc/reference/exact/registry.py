"""The registry of exact rules, by op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from smc.errors import InputError
from smc.ir import ops

Rule = TypeVar("Rule", bound=Callable[..., Any])

RULES: dict[str, Callable[..., Any]] = {}
"""Functions with the op's parameters, by the op's name; the model's parameters are `EncodedTensor`s."""


def exact(op: str) -> Callable[[Rule], Rule]:
    """Decorator: the function computes this op with the rounding of docs/numerics.md."""

    def declare(rule: Rule) -> Rule:
        if op in RULES:
            raise ValueError(f"there are two exact rules for {op}")
        RULES[op] = rule
        return rule

    return declare


def compute_exactly(op: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """An op's result, bit for bit; attributes with a default may be left out. InputError if it has no kernel."""
    if op not in RULES:
        raise no_kernel(f"the op {op}")
    return ops.find(op).call(RULES[op], inputs, attributes)


def no_kernel(what: str) -> InputError:
    """The error for an op that only `Reference` computes."""
    return InputError(f"there is no kernel, and so no exact arithmetic, for {what}")
