"""One result of an op that has several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import TypeFault, op
from smc.ir.types import TensorType, TupleType, Type

if TYPE_CHECKING:
    from torch import Tensor


def _result(source: Type, index: int) -> TensorType:
    if not isinstance(source, TupleType) or not 0 <= index < len(source.items):
        raise TypeFault("project needs a tuple and an index into it")
    return source.items[index]


@op(result=_result, takes_tuples=True)
def project(source: tuple[Tensor, ...], *, index: int) -> Tensor:
    """The result number `index` of a node with several."""
    return source[index]
