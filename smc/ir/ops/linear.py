"""The matrix product."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import Weight, op, same
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, weight: TensorType, bias: TensorType | None, residual: TensorType | None) -> TensorType:
    (tokens, columns), rows = x.shape, weight.shape[0]
    same("linear", columns, weight.shape[1], "input width and weight columns")
    if bias is not None:
        same("linear", rows, bias.shape[0], "weight rows and bias")
    if residual is not None:
        same("linear", rows, residual.shape[1], "weight rows and residual width")
    return TensorType((tokens, rows))


@op(ranks={"x": 2, "weight": 2, "bias": 1, "residual": 2}, result=_result)
def linear(x: Tensor, weight: Weight, bias: Weight | None = None, residual: Tensor | None = None) -> Tensor:
    """x [n, i], weight [o, i], bias [o], residual [n, o] → x·weightᵀ + bias + residual, [n, o]."""
    from torch.nn import functional

    result = functional.linear(weight.rounded(x), weight.values, None if bias is None else bias.values)
    return result if residual is None else result + residual
