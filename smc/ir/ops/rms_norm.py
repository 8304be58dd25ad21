"""Root mean square norm (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import Weight, op, same
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, weight: TensorType, eps: float) -> TensorType:
    same("rms_norm", x.shape[1], weight.shape[0], "width and weight")
    return x


@op(ranks={"x": 2, "weight": 1}, result=_result)
def rms_norm(x: Tensor, weight: Weight, *, eps: float) -> Tensor:
    """x [n, d], weight [d] → x / sqrt(mean(x²) + eps) · weight, the mean over a token's columns."""
    import torch

    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.values
