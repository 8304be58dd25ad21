"""Root mean square norm (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import TypeFault, Weight, op, same
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, weight: TensorType, residual: TensorType | None, eps: float) -> TensorType:
    width, columns = x.shape[1], weight.shape[0]
    if not (isinstance(width, int) and isinstance(columns, int)):
        same("rms_norm", width, columns, "width and weight")
    elif width % columns:
        raise TypeFault(f"rms_norm: the weight's {columns} columns do not divide the width {width}")
    if residual is not None:
        same("rms_norm", width, residual.shape[1], "width and residual width")
    return x


@op(ranks={"x": 2, "weight": 1, "residual": 2}, result=_result)
def rms_norm(x: Tensor, weight: Weight, residual: Tensor | None = None, *, eps: float) -> Tensor:
    """x [n, d], weight [d] → x / sqrt(mean(x²) + eps) · weight, the mean over a token's columns; plus residual [n, d].

    A weight with fewer columns normalizes every part of x of that width, a head of attention, by itself.
    """
    import torch

    heads = x.view(len(x), -1, weight.values.shape[0])
    result = (heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps) * weight.values).view(x.shape)
    return result if residual is None else result + residual
