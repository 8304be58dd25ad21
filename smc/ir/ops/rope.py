"""Rotary position embedding (Su et al., "RoFormer", 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import TypeFault, op
from smc.ir.rope import RopeTable
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, positions: TensorType, head_dim: int, table: RopeTable) -> TensorType:
    width = x.shape[1]
    if head_dim % 2 or (isinstance(width, int) and width % head_dim):
        raise TypeFault(f"rope: width {width} is not a multiple of an even head_dim {head_dim}")
    if not 0 < 2 * table.pairs <= head_dim:
        raise TypeFault(f"rope: a table of {table.pairs} pairs does not fit a head_dim of {head_dim}")
    return x


@op(ranks={"x": 2, "positions": 1}, result=_result)
def rope(x: Tensor, positions: Tensor, *, head_dim: int, table: RopeTable) -> Tensor:
    """x [n, h·head_dim], positions i32 [n] → channels i and i + pairs of a head turned by position · frequency i.

    Channels from 2 · pairs on stay as they are.
    """
    import torch

    angles = positions.float()[:, None] * torch.tensor(table.frequencies)
    cos, sin = (angles.cos() * table.magnitude)[:, None], (angles.sin() * table.magnitude)[:, None]
    heads = x.view(x.shape[0], -1, head_dim)
    first, second = heads[..., : 2 * table.pairs].chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*turned, heads[..., 2 * table.pairs :]), dim=-1).view(x.shape)
