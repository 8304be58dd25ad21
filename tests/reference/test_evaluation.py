"""Evaluation figures against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from smc.reference import evaluate, kl_divergence, text_windows
from smc.reference.evaluation import score


def test_windows_drop_the_rest():
    windows = text_windows(range(10), 4)
    assert [w.tolist() for w in windows] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(text_windows(range(10), 4, limit=1)) == 1


def test_kl_divergence_of_two_coins():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert kl_divergence(p + 3, q - 1).item() == pytest.approx(expected, rel=1e-6)  # logits may be shifted
    assert kl_divergence(p, p).item() == 0


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    windows = text_windows([3, 1, 4, 1, 5, 9, 2, 6], 4)
    result = evaluate(lambda tokens: torch.zeros(len(tokens), 10), windows)
    assert result.tokens == 6
    assert result.perplexity == pytest.approx(10)
    assert result.kl_divergence is None


def test_second_half_scores_only_tokens_behind_the_middle():
    window = torch.arange(8)

    def logits(tokens):
        # Sure of the right next token from position 4 on, sure of a wrong one before.
        result = torch.zeros(8, 10)
        for position in range(7):
            result[position, position + 1 if position >= 4 else 9] = 50.0
        return result

    assert evaluate(logits, [window], scored="second-half").perplexity == pytest.approx(1)
    assert evaluate(logits, [window], scored="second-half").tokens == 3
    assert evaluate(logits, [window]).perplexity > 1e6


def test_comparison_with_another_model():
    def one(tokens):
        return torch.nn.functional.one_hot(tokens, 5).float()

    def other(tokens):
        return torch.nn.functional.one_hot(tokens % 2, 5).float()

    result = evaluate(other, [torch.tensor([0, 1, 2, 3])], against=one)
    assert result.same_top == pytest.approx(2 / 3)  # the last position predicts nothing that is scored
    last = torch.tensor([2])
    assert result.kl_divergence == pytest.approx(kl_divergence(one(last), other(last)).item() / 3)


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="no window"):
        evaluate(lambda tokens: torch.zeros(len(tokens), 2), [])


def test_quantiles_and_the_error_of_the_mean_over_windows():
    """Windows of four tokens, of which the second half has one that is scored."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(40, 4, 10, generator=generator) for _ in range(2))
    windows = list(torch.randint(0, 10, (40, 4), generator=generator))
    told: list[float] = []

    def answers(logits):
        remaining = iter(logits)
        return lambda tokens: next(remaining)

    result = score(answers(ours), windows, answers(theirs), told.append).summary("second-half")
    p, q = theirs[:, 2].log_softmax(-1), ours[:, 2].log_softmax(-1)
    each = (p.exp() * (p - q)).sum(-1).double()
    assert result.tokens == 40
    assert result.kl_divergence == pytest.approx(each.mean().item())
    assert result.kl_error == pytest.approx(each.std().item() / math.sqrt(40))
    assert result.median_kl == pytest.approx(each.quantile(0.5).item())
    assert result.kl_99 == pytest.approx(each.quantile(0.99).item())
    assert told[-1] == 1
    assert evaluate(answers(ours), windows[:1], answers(theirs)).kl_error is None
