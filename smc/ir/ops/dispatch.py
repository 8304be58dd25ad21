"""Rows for the experts that tokens chose: what begins a mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import op, same
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, experts: TensorType) -> TensorType:
    same("dispatch", x.shape[0], experts.shape[0], "tokens of inputs and of choices")
    return TensorType((*experts.shape, x.shape[1]))


@op(ranks={"x": 2, "experts": 2}, result=_result)
def dispatch(x: Tensor, experts: Tensor) -> Tensor:
    """x [n, d], experts i32 [n, k] → [n, k, d]: every token's row once for each expert that it chose."""
    return x[:, None].expand(-1, experts.shape[1], -1)
