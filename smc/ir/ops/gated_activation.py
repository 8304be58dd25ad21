"""The product in the middle of a gated feed-forward (Shazeer, "GLU Variants Improve Transformer", 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.activations import ACTIVATIONS
from smc.ir.ops.registry import TypeFault, op
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(gate: TensorType, up: TensorType, activation: str) -> TensorType:
    if gate.shape != up.shape:
        raise TypeFault(f"an element-wise op takes two inputs of one shape, not {gate}, {up}")
    if activation not in ACTIVATIONS:
        raise TypeFault(f"gated_activation: there is no activation {activation}")
    return gate


@op(result=_result)
def gated_activation(gate: Tensor, up: Tensor, *, activation: str) -> Tensor:
    """gate and up of one shape → activation(gate) · up; the name of an activation in `smc.ir.activations`."""
    return ACTIVATIONS[activation].torch(gate) * up
