"""Layer norm (Ba et al., "Layer Normalization", 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import Weight, op, same
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, weight: TensorType, bias: TensorType | None, eps: float) -> TensorType:
    same("layer_norm", x.shape[1], weight.shape[0], "width and weight")
    if bias is not None:
        same("layer_norm", x.shape[1], bias.shape[0], "width and bias")
    return x


@op(ranks={"x": 2, "weight": 1, "bias": 1}, result=_result)
def layer_norm(x: Tensor, weight: Weight, bias: Weight | None = None, *, eps: float) -> Tensor:
    """x [n, d], weight and bias [d] → (x - mean) / sqrt(variance + eps) · weight + bias, over a token's columns."""
    from torch.nn import functional

    return functional.layer_norm(x, x.shape[1:], weight.values, None if bias is None else bias.values, eps)
