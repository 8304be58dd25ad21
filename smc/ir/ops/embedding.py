"""Rows of a table, looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import Weight, op
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(tokens: TensorType, table: TensorType, scale: float) -> TensorType:
    return TensorType((tokens.shape[0], table.shape[1]))


@op(ranks={"tokens": 1, "table": 2}, result=_result)
def embedding(tokens: Tensor, table: Weight, *, scale: float = 1.0) -> Tensor:
    """tokens i32 [n], table [vocab, d] → the tokens' rows times scale, [n, d]."""
    return table.values[tokens.long()] * scale
