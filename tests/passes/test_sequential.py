"""Rounding column after column beside a plain dense reading of GPTQ, in float64 and without Cholesky or blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from smc.errors import InputError
from smc.ir import Encoding
from smc.passes import InputStatistics, QuantizeGPTQ, QuantizeRTN, SequentialQuantizer, weight_quantizer

LEVELS = (-127, -92, -67, -48, -34, -22, -13, -4, 4, 13, 22, 34, 48, 67, 92, 127)


@dataclass(frozen=True)
class Codebook(SequentialQuantizer):
    """A codebook as a user would write it: the encoding, and the scales."""

    name: ClassVar[str] = "codebook"

    def encoding(self):
        return Encoding.of(bits=4, codebook=LEVELS, group=16)

    def scales(self, groups, statistics):
        return (groups.abs().amax(-1) / 127,)


@dataclass(frozen=True)
class Minimum(SequentialQuantizer):
    """A float minimum stored for every group."""

    name: ClassVar[str] = "minimum"

    def encoding(self):
        return Encoding.of(bits=3, minimum=True, group=16)

    def scales(self, groups, statistics):
        low = groups.amin(-1)
        return (groups.amax(-1) - low) / 7, low


def f16(values):
    return values.astype(np.float16).astype(np.float64)


def symmetric(bits):
    """As in the paper: the grid of the full range, here with the spare code on the side of the largest weight."""

    def grid(group):
        low, high = group.min(1), group.max(1)
        scale = f16(-np.where(-low > high, low, high) / 2 ** (bits - 1))[:, None]
        return lambda w: scale[:, 0] * (np.clip(np.rint(w / scale[:, 0]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))

    return grid


def asymmetric(bits):
    def grid(group):
        low, high, top = np.minimum(group.min(1), 0), np.maximum(group.max(1), 0), 2**bits - 1
        zero, scale = np.rint(-low * top / (high - low)), f16((high - low) / top)
        return lambda w: scale * (np.clip(np.rint(w / scale) + zero, 0, top) - zero)

    return grid


def codebook(group):
    scale = f16(np.abs(group).max(1) / 127)
    table = np.array(LEVELS, np.float64)
    return lambda w: scale * table[np.abs(w[:, None] / scale[:, None] - table).argmin(1)]


def minimum(group):
    low, scale = f16(group.min(1)), f16((group.max(1) - group.min(1)) / 7)
    return lambda w: scale * np.clip(np.rint((w - low) / scale), 0, 7) + low


def plain_gptq(weights, inputs, *, grid, group, damping, by_importance=False):
    """Equations 1 to 3 of arXiv 2210.17323: quantize a weight, and move those of the set F that are still free to where
    they make its error good best; H of F is inverted anew every time."""
    weights = weights.astype(np.float64).copy()
    columns = weights.shape[1]
    hessian = 2 * inputs.T.astype(np.float64) @ inputs
    hessian += damping * np.diag(hessian).mean() * np.eye(columns)
    order = np.argsort(-np.diag(hessian), kind="stable") if by_importance else np.arange(columns)
    spans = [slice(start, min(start + group, columns)) for start in range(0, columns, group)]
    grids = [grid(weights[:, span]) for span in spans] if by_importance else {}
    result = np.zeros_like(weights)
    for place, column in enumerate(order):
        if not by_importance and column % group == 0:
            grids[column // group] = grid(weights[:, spans[column // group]])
        result[:, column] = grids[column // group](weights[:, column])
        free = order[place:]
        inverse = np.linalg.inv(hessian[np.ix_(free, free)])
        error = weights[:, column] - result[:, column]
        weights[:, free] -= np.outer(error / inverse[0, 0], inverse[0])
    return result


def case(columns=40, rows=6, tokens=200, seed=0):
    """Weights, and inputs that depend on each other, some much larger than others."""
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((tokens, columns)) @ generator.standard_normal((columns, columns))
    inputs *= np.exp(generator.standard_normal(columns))
    return generator.standard_normal((rows, columns)).astype(np.float32), inputs.astype(np.float32)


def statistics(inputs):
    x = torch.from_numpy(inputs)
    return InputStatistics(len(x), second_moments=x.T @ x / len(x))


def encode(method, weights, inputs):
    return method.encode(torch.from_numpy(weights), None if inputs is None else statistics(inputs)).decode().numpy()


CASES = {
    "4 bits, a short last group": (QuantizeGPTQ(bits=4, group=16, search=0), symmetric(4), 16),
    "3 bits, longer groups": (QuantizeGPTQ(bits=3, group=32, search=0), symmetric(3), 32),
    "stored zeros": (QuantizeGPTQ(bits=4, group=16, symmetric=False, search=0), asymmetric(4), 16),
    "strong damping": (QuantizeGPTQ(bits=4, group=16, search=0, damping=0.3), symmetric(4), 16),
    "codebook": (Codebook(), codebook, 16),
    "minimum": (Minimum(), minimum, 16),
}


@pytest.mark.parametrize("order", ["natural", "importance"])
@pytest.mark.parametrize("name", CASES)
def test_equals_a_plain_reading_of_the_paper(name, order):
    method, grid, group = CASES[name]
    method = type(method)(**{**vars(method), "order": order})
    weights, inputs = case()
    importance = order == "importance"
    expected = plain_gptq(weights, inputs, grid=grid, group=group, damping=method.damping, by_importance=importance)
    result = encode(method, weights, inputs)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(result, encode(method, weights, None), atol=1e-3)  # the inputs matter


def test_blocks_are_no_part_of_the_result():
    """A row longer than a block, as one group: errors reach beyond the block where they arose."""
    weights, inputs = case(columns=150, tokens=400)
    method = QuantizeGPTQ(bits=4, group="row", search=0)
    expected = plain_gptq(weights, inputs, grid=symmetric(4), group=150, damping=0.01)
    np.testing.assert_allclose(encode(method, weights, inputs), expected, rtol=1e-5, atol=1e-6)


def test_rows_come_in_chunks(monkeypatch):
    weights, inputs = case(rows=7)
    method = QuantizeGPTQ(bits=4, group=16)
    whole = encode(method, weights, inputs)
    monkeypatch.setattr(weight_quantizer, "CALIBRATED_CHUNK_WEIGHTS", 100)
    np.testing.assert_array_equal(encode(method, weights, inputs), whole)


@pytest.mark.parametrize(
    "method",
    [
        QuantizeGPTQ(bits=3, group=16),
        QuantizeGPTQ(bits=3, group=16, order="importance"),
        QuantizeGPTQ(bits=3, group=16, symmetric=False),
        QuantizeGPTQ(bits=3, group=16, super_group=4),
        QuantizeGPTQ(bits=3, group=16, super_group=4, symmetric=False),
        Codebook(),
        Minimum(),
    ],
    ids=str,
)
def test_products_are_nearer_than_of_weights_rounded_to_nearest(method):
    """Whatever the encoding; without inputs, a method of this kind rounds to nearest."""
    weights, inputs = case(rows=32)
    losses = [
        np.square((encode(method, weights, given) - weights) @ inputs.T).sum() for given in (inputs, None)
    ]
    assert losses[0] < 0.7 * losses[1]


def test_without_inputs_it_rounds_to_nearest():
    weights, _ = case()
    expected = encode(QuantizeRTN(bits=4, group=16), weights, None)
    np.testing.assert_array_equal(encode(QuantizeGPTQ(bits=4, group=16), weights, None), expected)


@pytest.mark.parametrize("order", ["natural", "importance"])
def test_a_group_of_zeros_stays_and_takes_no_errors(order):
    weights, inputs = case()
    weights[2, 16:32] = 0

    def grid(group):
        usual = symmetric(4)(np.where(np.abs(group).max(1, keepdims=True) > 0, group, 1))
        return lambda w: usual(w)

    method = QuantizeGPTQ(bits=4, group=16, search=0, order=order)
    result = encode(method, weights, inputs)
    assert (result[2, 16:32] == 0).all()
    others = np.delete(np.arange(6), 2)
    expected = plain_gptq(
        weights[others], inputs, grid=grid, group=16, damping=0.01, by_importance=order == "importance"
    )
    np.testing.assert_allclose(result[others], expected, rtol=1e-5, atol=1e-6)
    nearest = encode(method, weights, None)
    assert np.square((result - weights)[2] @ inputs.T).sum() < np.square((nearest - weights)[2] @ inputs.T).sum()


def test_inputs_that_are_always_zero():
    weights, inputs = case()
    inputs[:, [0, 7, 39]] = 0
    result = encode(QuantizeGPTQ(bits=4, group=16), weights, inputs)
    assert np.isfinite(result).all()
    assert np.abs(result - weights)[:, [0, 7, 39]].max() < 1
    assert np.isfinite(encode(QuantizeGPTQ(bits=4, group=16), weights, inputs * 0)).all()


def test_inputs_without_an_inverse():
    weights, inputs = case(tokens=2)
    with pytest.raises(InputError, match="depend on each other too much for a damping of 1e-12: choose a larger one"):
        encode(QuantizeGPTQ(bits=4, group=16, damping=1e-12), weights, inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0}, "damping of quantize-gptq must be above 0 and at most 1, not 0"),
        ({"damping": float("nan")}, "damping of quantize-gptq must be above 0"),
        ({"bits": 9}, "quantize-gptq takes 2 to 8 bits, not 9"),
        ({"group": 24}, "quantize-gptq takes groups of 16, 32, 64, 128, row, not 24"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        QuantizeGPTQ(**options)
