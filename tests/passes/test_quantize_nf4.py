"""NF4 from its definition, and its rounding against plain numpy."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from smc.passes import QuantizeNF4
from smc.passes.quantize_nf4 import NF4_LEVELS


def test_levels_are_quantiles_of_the_normal_distribution() -> None:
    """As QLoRA makes them: 8 positive and 7 negative quantiles and 0, from 1 - (1/32 + 1/30) / 2 on."""
    begin, quantile = 1 - (1 / 32 + 1 / 30) / 2, NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(begin, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(begin, 0.5, 8)[:-1]]
    levels = np.sort([*positive, 0, *negative]) / max(positive)
    np.testing.assert_allclose(NF4_LEVELS, levels, atol=2e-7)


@pytest.mark.parametrize("grid", ["f32", "i8"])
@pytest.mark.parametrize(("columns", "group"), [(64, 64), (341, 64), (80, 16), (33, "row")])
def test_every_weight_gets_the_nearest_level(grid: Any, columns: int, group: Any) -> None:
    weights = np.random.default_rng(0).normal(0, 0.1, (5, columns)).astype(np.float32)
    weights[2] = 0
    tensor = QuantizeNF4(grid=grid, group=group).encode(torch.from_numpy(weights))
    assert tensor.encoding.has_codebook
    levels, size = np.array(tensor.encoding.entries), group if isinstance(group, int) else columns
    assert np.abs(levels / levels[-1] - NF4_LEVELS).max() <= (0.5 / 127 + 1e-9 if grid == "i8" else 1e-9)
    decoded = tensor.decode().numpy()
    for begin in range(0, columns, size):
        part = weights[:, begin : begin + size]
        scales = np.float16(np.abs(part).max(1) / np.float32(levels[-1])).astype(np.float64)
        choices = scales[:, None, None] * levels
        best = np.abs(part[..., None] - choices).min(-1)
        np.testing.assert_allclose(np.abs(part - decoded[:, begin : begin + size]), best, atol=1e-6)
    assert tensor.encoding.rounds_inputs == (grid == "i8")
