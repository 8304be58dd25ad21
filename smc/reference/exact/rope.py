"""The rotary embedding: angles in float32, cosine and sine in double, rounded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from smc.ir import RopeScaling, inverse_frequencies
from smc.reference.exact.registry import exact
from smc.reference.float32 import fma


@exact("rope")
def rope(x: Tensor, positions: Tensor, *, head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Pairs turned by one fma a channel."""
    frequencies = inverse_frequencies(head_dim, theta, scaling)
    angles = (positions.float()[:, None, None] * torch.from_numpy(frequencies)).double().numpy()
    cos, sin = (torch.from_numpy(function(angles)).float() for function in (np.cos, np.sin))
    first, second = x.view(len(x), -1, head_dim).chunk(2, dim=-1)
    return torch.cat((fma(first, cos, -(second * sin)), fma(second, cos, first * sin)), dim=-1).view(x.shape)
