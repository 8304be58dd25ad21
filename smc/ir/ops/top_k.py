"""The largest values of every token, and their indices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import op
from smc.ir.types import TensorType, TupleType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, k: int) -> TupleType:
    shape = (x.shape[0], k)
    return TupleType((TensorType(shape), TensorType(shape, "i32")))


@op(ranks={"x": 2}, result=_result, kernel=False)
def top_k(x: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """x [n, c] → values [n, k] from the largest down, and indices i32 [n, k]; of equals the lower index comes first."""
    values, indices = x.sort(dim=-1, descending=True, stable=True)
    return values[:, :k], indices[:, :k].int()
