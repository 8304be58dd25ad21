"""Rotary position embedding (Su et al., "RoFormer", 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smc.ir.ops.registry import TypeFault, op
from smc.ir.rope import RopeScaling, inverse_frequencies
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, positions: TensorType, head_dim: int, **_: Any) -> TensorType:
    width = x.shape[1]
    if head_dim % 2 or (isinstance(width, int) and width % head_dim):
        raise TypeFault(f"rope: width {width} is no multiple of an even head_dim {head_dim}")
    return x


@op(ranks={"x": 2, "positions": 1}, result=_result)
def rope(x: Tensor, positions: Tensor, *, head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """x [n, h·head_dim], positions i32 [n] → channels i and i + head_dim/2 of a head turned by position · frequency."""
    import torch

    frequencies = inverse_frequencies(head_dim, theta, scaling)
    angles = positions.float()[:, None] * torch.from_numpy(frequencies)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x.view(x.shape[0], -1, head_dim).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).view(x.shape)
