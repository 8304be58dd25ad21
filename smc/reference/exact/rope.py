"""The rotary embedding: angles in float32, cosine and sine in double, rounded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from smc.ir import RopeTable
from smc.reference.exact.registry import exact
from smc.reference.float32 import fma


@exact("rope")
def rope(x: Tensor, positions: Tensor, *, head_dim: int, table: RopeTable) -> Tensor:
    """Pairs turned by one fma a channel; cosine and sine rounded, then times the table's magnitude."""
    angles = (positions.float()[:, None, None] * torch.tensor(table.frequencies)).double().numpy()
    magnitude = torch.tensor(table.magnitude, dtype=torch.float32)
    cos, sin = (torch.from_numpy(function(angles)).float() * magnitude for function in (np.cos, np.sin))
    heads = x.view(len(x), -1, head_dim)
    first, second = heads[..., : 2 * table.pairs].chunk(2, dim=-1)
    turned = (fma(first, cos, -(second * sin)), fma(second, cos, first * sin))
    return torch.cat((*turned, heads[..., 2 * table.pairs :]), dim=-1).view(x.shape)
