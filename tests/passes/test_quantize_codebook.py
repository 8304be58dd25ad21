"""Codebooks with two-level scales: beside every scale tried in numpy, and beside integers of about the same size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smc.errors import InputError
from smc.passes import QuantizeCodebook, QuantizeRTN
from smc.passes.menu import CODEBOOKS


def weights(rows=40, columns=320, seed=0):
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.standard_normal((rows, columns)).astype(np.float32) * 0.05)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_codes_are_the_nearest_and_scales_near_the_best(bits):
    values = weights(6, 72)
    tensor = QuantizeCodebook(bits=bits).encode(values)
    table, groups = np.array(CODEBOOKS[bits], np.float64), torch.nn.functional.pad(values, (0, 24)).view(6, 3, 32)
    for row in range(6):
        for index in range(3):
            group, scale = groups[row, index].double().numpy(), float(tensor.group_scales()[row, index])
            valid = slice(0, 32 if index < 2 else 8)
            distance = np.abs(group[:, None] - scale * table)
            chosen = distance[np.arange(32), tensor.codes[row, index].numpy()]
            np.testing.assert_allclose(chosen[valid], distance.min(1)[valid], atol=1e-7)
            error = np.square(distance.min(1)[valid]).sum()
            widest = max(group.max() / table[-1], group.min() / table[0])
            tried = widest * np.linspace(0.4, 1.2, 400)
            best = min(np.square(np.abs(group[:, None] - s * table).min(1)[valid]).sum() for s in tried)
            assert error < (1.8 if index < 2 else 2.5) * best


def test_it_loses_less_than_larger_integers():
    values = weights()
    codebook, integers = QuantizeCodebook(bits=4), QuantizeRTN(bits=4)
    errors = [(method.encode(values).decode() - values).square().mean().item() for method in (codebook, integers)]
    bits = [method.encoding().stored_bits((40, 320)) / values.numel() for method in (codebook, integers)]
    assert bits == [4 + 8 / 32 + 16 / 320, 4.5]
    assert errors[0] < 0.95 * errors[1]


def test_zeros_and_negative_groups():
    values = weights(4, 64)
    values[1], values[2, :32], values[3] = 0, -values[2, :32].abs(), 1e-5
    result = QuantizeCodebook().encode(values).decode()
    assert (result[1] == 0).all()
    assert result.isfinite().all()
    torch.testing.assert_close(result[3], values[3], rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("options", "message"), [({"bits": 6}, "takes 2, 3, 4, 5 bits, not 6"), ({"search": -1}, "a number of steps")]
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        QuantizeCodebook(**options)
