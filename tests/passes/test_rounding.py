"""Rounding by GPTQ with tried scales, and coordinate descent, beside a plain dense reading in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smc.errors import InputError
from smc.ir import Encoding
from smc.passes.menu import WIDTHS, stored_as
from smc.passes.rounding import CANDIDATES, HEADROOM, SMALLEST, Levels, Metric, round_matrix


def case(rows=5, columns=80, tokens=300, seed=0):
    """Weights, and second moments of inputs that depend on each other."""
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((tokens, columns)) @ generator.standard_normal((columns, columns))
    inputs *= np.exp(generator.standard_normal(columns))
    weights = generator.standard_normal((rows, columns)) * 0.02
    return torch.from_numpy(weights).float(), torch.from_numpy(inputs.T @ inputs / tokens).float()


def levels(bits):
    encoding = stored_as(bits, 64)
    return np.array(sorted(encoding.entries) or [code - 2 ** (bits - 1) for code in range(2**bits)], np.float64)


def damped(moments, damping):
    moments = moments.astype(np.float64)
    return moments + damping * np.diag(moments).mean() * np.eye(len(moments))


def plain_round(weights, moments, bits, sweeps, outputs=None, coupled=0):
    """Row by row, the inverse of what is left of H taken anew for every column."""
    table, hessian = levels(bits), damped(moments, 0.01)
    fractions = np.linspace(1, SMALLEST.get(bits, 0.95), CANDIDATES)
    weights = weights.astype(np.float64)
    rows = [_plain_row(row, hessian, table, fractions, sweeps) for row in weights]
    if not coupled:
        return np.stack([row.values for row in rows])
    metric = damped(outputs, 0.3)
    best, kept = np.inf, None
    for sweep in range(coupled + 1):
        errors = np.stack([row.values for row in rows]) - weights
        lost = np.trace(metric @ errors @ hessian @ errors.T)
        if lost >= best:
            break
        best, kept = lost, errors + weights
        for i, row in enumerate(rows if sweep < coupled else ()):
            errors = np.stack([other.values for other in rows]) - weights
            row.descend(weights[i] + errors[i] - metric[i] @ errors / metric[i, i])
    return kept


def nearest(table, values):
    return table[np.abs(values[:, None] - table).argmin(1)]


def covering(table, values):
    return max(max(values.max(), 0) / table[-1], min(values.min(), 0) / table[0])


class PlainRow:
    """A row's values, and its groups' scales, multiples of `outer`."""

    def __init__(self, hessian, table, spans, outer):
        self.hessian, self.table, self.spans, self.outer = hessian, table, spans, outer
        self.values, self.scales = np.zeros(len(hessian)), []

    def descend(self, row):
        result, scales = self.values, self.scales
        for index, span in enumerate(self.spans):
            for column in span:
                slope = (result - row) @ self.hessian[:, column]
                wanted = result[column] - slope / self.hessian[column, column]
                result[column] = scales[index] * nearest(self.table, np.array([wanted / scales[index]]))[0]
            place = list(span)
            unscaled = np.zeros(len(row))
            unscaled[place] = result[place] / scales[index]
            curvature, slope = unscaled @ self.hessian @ unscaled, unscaled @ self.hessian @ (result - row)
            scale = self.outer * np.clip(np.rint((scales[index] - slope / curvature) / self.outer), 1, 255)
            change = scale - scales[index]
            if change**2 * curvature + 2 * change * slope < 0:
                scales[index] = scale
                result[place] = unscaled[place] * scale


def _plain_row(row, hessian, table, fractions, sweeps, group=32):
    columns = len(row)
    spans = [range(start, min(start + group, columns)) for start in range(0, columns, group)]
    outer = float(torch.tensor(max(covering(table, row[list(span)]) for span in spans) * HEADROOM / 255).bfloat16())
    left, made = row.copy(), PlainRow(hessian, table, spans, outer)
    for span in spans:
        tried = []
        for fraction in fractions:
            scale = outer * np.clip(np.rint(fraction * covering(table, left[list(span)]) / outer), 1, 255)
            rest, loss, values = left.copy(), 0.0, {}
            for column in span:
                inverse = np.linalg.inv(hessian[column:, column:])
                values[column] = scale * nearest(table, rest[column : column + 1] / scale)[0]
                error = rest[column] - values[column]
                rest[column:] -= error / inverse[0, 0] * inverse[0]
                loss += error**2 / inverse[0, 0]
            tried.append((loss, scale, rest, values))
        _, scale, left, values = min(tried, key=lambda one: one[0])
        made.scales.append(scale)
        for column, value in values.items():
            made.values[column] = value
    for _ in range(sweeps):
        made.descend(row)
    return made


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("sweeps", [0, 2])
def test_equals_a_plain_reading(bits, sweeps):
    weights, moments = case()
    result = round_matrix(weights, stored_as(bits, 80), Metric.of(moments, 0.01), sweeps).decode().numpy()
    expected = plain_round(weights.numpy(), moments.numpy(), bits, sweeps)
    # Where two levels are equally near but for rounding, the one or the other: hardly ever, and then a step apart.
    same = np.isclose(result, expected, rtol=1e-4, atol=1e-7)
    assert same.mean() > 0.97


def test_coupled_sweeps_equal_a_plain_reading():
    """Gradients of outputs that depend on each other; fewer rows than parts, so that each moves by itself."""
    weights, moments = case(rows=6)
    outputs = case(rows=1, columns=6, tokens=200, seed=1)[1]
    metric, encoding = Metric.of(moments, 0.01), stored_as(4, 80)
    result = round_matrix(weights, encoding, metric, 1, outputs, 2).decode()
    expected = plain_round(weights.numpy(), moments.numpy(), 4, 1, outputs.numpy(), 2)
    assert np.isclose(result.numpy(), expected, rtol=1e-4, atol=1e-7).mean() > 0.97
    alone = round_matrix(weights, encoding, metric, 3).decode()

    def lost(found):
        errors = (found - weights).double().numpy()
        return np.trace(damped(outputs.numpy(), 0.3) @ errors @ metric.moments.double().numpy() @ errors.T)

    assert lost(result) < 0.95 * lost(alone)


def test_what_loses_more_together_is_not_kept(monkeypatch):
    """Rows that all do the same to the loss, moved at once, overshoot."""
    from smc.passes import rounding

    weights, moments = case(rows=20)
    monkeypatch.setattr(rounding, "COUPLED_BLOCKS", 1)
    metric, encoding = Metric.of(moments, 0.01), stored_as(4, 80)
    kept = round_matrix(weights, encoding, metric, 1, torch.ones(20, 20), 2).decode()
    assert torch.equal(kept, round_matrix(weights, encoding, metric, 1).decode())


def loss(result, weights, moments):
    error = result - weights
    return float(((error @ moments) * error).sum())


def test_every_step_loses_less():
    weights, moments = case(rows=40)
    metric, unit = Metric.of(moments, 0.01), Metric.of(torch.eye(80), 0.01)
    encoding = stored_as(3, 80)
    nearest_codes = round_matrix(weights, encoding, unit, 0).decode()
    gptq, descended = (round_matrix(weights, encoding, metric, sweeps).decode() for sweeps in (0, 3))
    losses = [loss(result, weights, metric.moments) for result in (nearest_codes, gptq, descended)]
    assert losses[1] < 0.7 * losses[0]
    assert losses[2] < 0.95 * losses[1]


def test_more_bits_lose_less():
    weights, moments = case(rows=30)
    metric = Metric.of(moments, 0.01)
    losses = [loss(round_matrix(weights, stored_as(bits, 80), metric).decode(), weights, moments) for bits in WIDTHS]
    assert losses == sorted(losses, reverse=True)


def test_groups_of_zeros_stay_zero():
    weights, moments = case()
    weights[1, 32:64] = 0
    weights[3] = 0
    result = round_matrix(weights, stored_as(4, 80), Metric.of(moments, 0.01)).decode()
    assert (result[1, 32:64] == 0).all()
    assert (result[3] == 0).all()
    assert result.isfinite().all()


def test_rows_come_in_chunks(monkeypatch):
    from smc.passes import rounding

    weights, moments = case(rows=7)
    metric, encoding = Metric.of(moments, 0.01), stored_as(4, 80)
    whole = round_matrix(weights, encoding, metric).decode()
    monkeypatch.setattr(rounding, "CHUNK_WEIGHTS", 200)
    assert torch.equal(round_matrix(weights, encoding, metric).decode(), whole)


def test_inputs_that_are_always_zero():
    weights, moments = case()
    moments[7], moments[:, 7] = 0, 0
    assert round_matrix(weights, stored_as(4, 80), Metric.of(moments, 0.01)).decode().isfinite().all()
    assert round_matrix(weights, stored_as(4, 80), Metric.of(moments * 0, 0.01)).decode().isfinite().all()


def test_levels_are_the_nearest():
    table = Levels(stored_as(4, 64))
    values = torch.linspace(-140, 140, 2000)
    expected = torch.from_numpy(nearest(levels(4), values.double().numpy())).float()
    assert torch.equal(table.nearest(values), expected)
    assert torch.equal(table.entries[table.codes(values).int()], expected)


@pytest.mark.parametrize(
    "encoding",
    [Encoding.of(bits=4, group=32), Encoding.of(bits=4, group=32, super_group=2), Encoding.of(bits=4, zero="stored")],
    ids=str,
)
def test_other_encodings_are_refused(encoding):
    weights, moments = case(columns=96)
    with pytest.raises(InputError, match="one super-group per row"):
        round_matrix(weights, encoding, Metric.of(moments, 0.01))
