"""The router of a mixture of experts (Shazeer et al., "Outrageously Large Neural Networks", 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import TypeFault, op
from smc.ir.types import TensorType, TupleType

if TYPE_CHECKING:
    from torch import Tensor


def _result(logits: TensorType, k: int, normalized: bool) -> TupleType:
    experts = logits.shape[1]
    if isinstance(experts, int) and not 1 <= k <= experts:
        raise TypeFault(f"route: {k} of {experts} experts can't be chosen")
    shape = (logits.shape[0], k)
    return TupleType((TensorType(shape), TensorType(shape, "i32")))


@op(ranks={"logits": 2}, result=_result)
def route(logits: Tensor, *, k: int, normalized: bool = False) -> tuple[Tensor, Tensor]:
    """logits [n, experts] → weights [n, k] and experts i32 [n, k]: the softmax's k largest, from the largest down.

    Of equals the lower expert comes first. normalized: the weights of a token are divided by their sum.
    """
    chosen, experts = logits.sort(dim=-1, descending=True, stable=True)
    chosen, experts = chosen[:, :k], experts[:, :k].int()
    if normalized:
        return chosen.softmax(-1), experts
    return (chosen - logits.logsumexp(-1, keepdim=True)).exp(), experts
