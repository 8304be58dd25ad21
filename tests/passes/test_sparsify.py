"""Weights set to 0, against dense readings of the papers in numpy on small matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.passes import Context, SparsifyMagnitude, SparsifySparseGPT, SparsifyWanda, apply
from smc.passes.statistics import InputStatistics
from smc.reference import CalibrationText, Reference


def case(rows=7, columns=60, tokens=200, seed=0):
    """Weights [rows, columns] and inputs [tokens, columns], correlated and of different sizes."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(tokens, columns)) @ random.normal(size=(columns, columns))
    inputs = mixed * random.exponential(1, columns)
    return random.normal(size=(rows, columns)), inputs


def statistics(inputs):
    x = torch.from_numpy(inputs).float()
    return InputStatistics(len(x), second_moments=x.T @ x / len(x))


def two_of_four(scores):
    """True for the two smallest of every four neighbours."""
    drop = np.zeros(scores.shape, bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], 4):
            drop[row, start + np.argsort(scores[row, start : start + 4], kind="stable")[:2]] = True
    return drop


@pytest.mark.parametrize("sparsity", [0.5, 0.3])
def test_magnitude(sparsity):
    weights, _ = case()
    made = SparsifyMagnitude(sparsity).prune(torch.from_numpy(weights), None).numpy()
    smallest = np.sort(np.abs(weights).flatten())[: int(weights.size * sparsity)]
    np.testing.assert_array_equal(made, np.where(np.abs(weights) <= smallest[-1], 0, weights))


@pytest.mark.parametrize("sparsity", [0.5, 0.3])
def test_wanda(sparsity):
    """S = |W| · ‖X‖₂, compared within a row (Sun et al., section 3)."""
    weights, inputs = case()
    made = SparsifyWanda(sparsity).prune(torch.from_numpy(weights).float(), statistics(inputs)).numpy()
    scores = np.abs(weights) * np.sqrt((inputs**2).sum(0))
    for row, row_scores, row_weights in zip(made, scores, weights, strict=True):
        dropped = np.argsort(row_scores)[: int(60 * sparsity)]
        assert set(np.flatnonzero(row == 0)) == set(dropped)
        np.testing.assert_allclose(row[row != 0], row_weights[row != 0], rtol=1e-6)


def test_two_of_four():
    weights, inputs = case()
    scores = np.abs(weights) * np.sqrt((inputs**2).sum(0))
    wanda = SparsifyWanda(pattern="2:4").prune(torch.from_numpy(weights).float(), statistics(inputs)).numpy()
    np.testing.assert_array_equal(wanda == 0, two_of_four(scores))
    magnitude = SparsifyMagnitude(pattern="2:4").prune(torch.from_numpy(weights), None).numpy()
    np.testing.assert_array_equal(magnitude == 0, two_of_four(np.abs(weights)))


def sparsegpt(weights, inputs, sparsity, pattern, block=128, damping=0.01):
    """Frantar and Alistarh's step, column by column with H⁻¹ of what is left inverted anew each time, float64.

    A weight that goes counts w² / [H⁻¹]cc, and the rest of its row is changed by -w / [H⁻¹]cc · H⁻¹c,: (their equation
    3); masks are chosen at the beginning of every block of columns, among all of its weights.
    """
    weights, columns = weights.astype(np.float64).copy(), weights.shape[1]
    hessian = inputs.T @ inputs / len(inputs)
    hessian = hessian + damping * np.diag(hessian).mean() * np.eye(columns)
    drop = np.zeros(weights.shape, bool)
    step = 4 if pattern == "2:4" else block
    for column in range(columns):
        if column % step == 0:
            chosen = list(range(column, min(column + step, columns)))
            diagonal = np.array([np.linalg.inv(hessian[c:, c:])[0, 0] for c in chosen])
            scores = weights[:, chosen] ** 2 / diagonal
            if pattern == "2:4":
                drop[:, chosen] = two_of_four(scores)
            else:
                order = np.argsort(scores.flatten())[: int(scores.size * sparsity)]
                drop[:, chosen] = np.isin(np.arange(scores.size), order).reshape(scores.shape)
        inverse = np.linalg.inv(hessian[column:, column:])
        error = np.where(drop[:, column], weights[:, column], 0) / inverse[0, 0]
        weights[:, column:] -= np.outer(error, inverse[0])
        weights[drop[:, column], column] = 0
    return weights


@pytest.mark.parametrize("pattern", ["any", "2:4"])
@pytest.mark.parametrize("columns", [60, 140])
def test_sparsegpt(pattern, columns):
    weights, inputs = case(columns=columns, tokens=500)
    method = SparsifySparseGPT(pattern=pattern)
    made = method.prune(torch.from_numpy(weights).float(), statistics(inputs)).numpy()
    expected = sparsegpt(weights, inputs, 0.5, pattern)
    np.testing.assert_array_equal(made == 0, expected == 0)
    np.testing.assert_allclose(made, expected, atol=2e-3 * np.abs(expected).max())


def test_each_method_loses_less_than_the_one_before():
    weights, inputs = case(rows=40, columns=96, tokens=400)
    given = torch.from_numpy(weights).float()
    losses = [
        np.linalg.norm(inputs @ (method.prune(given, statistics(inputs)).numpy() - weights).T)
        for method in (SparsifyMagnitude(), SparsifyWanda(), SparsifySparseGPT())
    ]
    assert losses[2] < losses[1] < losses[0]


def test_a_model_keeps_head_and_embedding_and_has_its_zeros(make_checkpoint):
    module = load_checkpoint(make_checkpoint()[0])
    generator = torch.Generator().manual_seed(3)
    text = CalibrationText([torch.randint(0, 96, (50,), generator=generator) for _ in range(3)])
    for method in (SparsifyMagnitude(0.25), SparsifyWanda(0.25), SparsifySparseGPT(0.25)):
        result = apply(module, [method], Context(calibration=text))
        for name, parameter in result.parameters.items():
            if len(parameter.shape) == 2:
                share = (parameter.values() == 0).float().mean().item()
                assert share == (0 if "embed" in name or "lm_head" in name else pytest.approx(0.25, abs=0.01))
            assert parameter.encoding == module.parameters[name].encoding
        assert Reference(result).logits(torch.arange(9)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 1.0}, "must be above 0 and below 1, not 1"),
        ({"sparsity": 0.25, "pattern": "2:4"}, "must be 0.5, not 0.25"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(InputError, match=words):
        SparsifyWanda(**options)


def test_columns_that_are_no_fours(make_checkpoint):
    module = load_checkpoint(make_checkpoint(intermediate_size=82)[0])
    with pytest.raises(InputError, match="has 82 columns, not a multiple of 4: leave it out with exclude"):
        apply(module, [SparsifyMagnitude(pattern="2:4")])
