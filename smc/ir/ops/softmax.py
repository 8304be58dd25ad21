"""Softmax by itself; that of attention is a part of `attention`, that of experts of `route`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import op
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType) -> TensorType:
    return x


@op(ranks={"x": 2}, result=_result, kernel=False)
def softmax(x: Tensor) -> Tensor:
    """x [n, c] → exp(x) over its sum, along the last dim."""
    return x.softmax(-1)
