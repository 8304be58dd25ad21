"""Matrix products with matrices that every row chooses: a mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import TypeFault, Weight, op, same
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, weights: TensorType, experts: TensorType) -> TensorType:
    same("grouped_linear", x.shape[2], weights.shape[2], "input width and weight columns")
    if x.shape[:2] != experts.shape:
        raise TypeFault(f"grouped_linear: a row needs one expert, not {x} with {experts}")
    return TensorType((*experts.shape, weights.shape[1]))


@op(ranks={"x": 3, "weights": 3, "experts": 2}, result=_result)
def grouped_linear(x: Tensor, weights: Weight, experts: Tensor) -> Tensor:
    """x [n, k, i], weights [count, o, i], experts i32 [n, k] → [n, k, o]: every row times the matrix that it chose."""
    import torch
    from torch.nn import functional

    chosen = experts.long()
    places, parts = [], []
    for expert in torch.unique(chosen).tolist():
        places.append((chosen == expert).nonzero(as_tuple=True))
        matrix = weights.matrix(expert)
        parts.append(functional.linear(matrix.rounded(x[places[-1]]), matrix.values))
    tokens, choices = (torch.cat(indices) for indices in zip(*places, strict=True))
    result = x.new_zeros(*chosen.shape, parts[0].shape[1])
    return result.index_put((tokens, choices), torch.cat(parts))
