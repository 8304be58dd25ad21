"""Layer norm of single heads (StableLM 2 12B): each has weights of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import TypeFault, Weight, op, same
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, weight: TensorType, head_dim: int, eps: float) -> TensorType:
    same("head_layer_norm", x.shape[1], weight.shape[0], "width and weight")
    if not isinstance(x.shape[1], int) or x.shape[1] % head_dim:
        raise TypeFault(f"head_layer_norm: heads of {head_dim} columns do not divide {x.shape[1]}")
    return x


@op(ranks={"x": 2, "weight": 1}, result=_result)
def head_layer_norm(x: Tensor, weight: Weight, *, head_dim: int, eps: float) -> Tensor:
    """x [n, h·head_dim], weight [h·head_dim] → (x - mean) / sqrt(variance + eps) · weight, over a head's columns."""
    from torch.nn import functional

    heads = x.reshape(len(x), -1, head_dim)
    return functional.layer_norm(heads, (head_dim,), eps=eps).reshape(x.shape) * weight.values
