"""The sum that ends a mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import op, same
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, weights: TensorType, residual: TensorType | None) -> TensorType:
    same("combine", x.shape[1], weights.shape[1], "choices and weights per token")
    if residual is not None:
        same("combine", x.shape[2], residual.shape[1], "width and residual width")
    return TensorType((x.shape[0], x.shape[2]))


@op(ranks={"x": 3, "weights": 2, "residual": 2}, result=_result)
def combine(x: Tensor, weights: Tensor, residual: Tensor | None = None) -> Tensor:
    """x [n, k, d], weights [n, k], residual [n, d] → [n, d]: Σ weight · row over every token's k rows, + residual."""
    result = (x * weights[..., None]).sum(1)
    return result if residual is None else result + residual
