"""Matrix products with matrices that every token chooses: a mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import Weight, op, same
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, weights: TensorType, index: TensorType) -> TensorType:
    same("grouped_linear", x.shape[1], weights.shape[2], "input width and weight columns")
    return TensorType((*index.shape, weights.shape[1]))


@op(ranks={"x": 2, "weights": 3, "index": 2}, result=_result, kernel=False)
def grouped_linear(x: Tensor, weights: Weight, index: Tensor) -> Tensor:
    """x [n, i], weights [experts, o, i], index i32 [n, k] → every token times the matrices that it chose, [n, k, o]."""
    import torch
    from torch.nn import functional

    chosen, x = index.long(), weights.rounded(x)
    result = x.new_empty(*chosen.shape, weights.values.shape[1])
    for expert in torch.unique(chosen).tolist():
        token, place = (chosen == expert).nonzero(as_tuple=True)
        result[token, place] = functional.linear(x[token], weights.values[expert])
    return result
