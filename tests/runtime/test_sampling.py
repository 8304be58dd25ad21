"""Sampling against transformers' logits processors, and the laws of the draw."""

from __future__ import annotations

import numpy as np
import pytest

from smc.errors import InputError
from smc.runtime.sampling import (
    Sampler,
    SamplingOptions,
    SplitMix64,
    apply_repetition_penalty,
    filter_logits,
    invert_cumulative,
    log_probabilities,
    top_tokens,
)


def random_logits(vocab: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, vocab).astype(np.float32)


def transformers_logits(logits: np.ndarray, options: SamplingOptions, seen: list[int]) -> np.ndarray:
    """The same options through transformers, in the order of its `generate` and in float64."""
    import torch
    from transformers.generation import logits_process as hf

    processors = hf.LogitsProcessorList()
    if options.repetition_penalty != 1.0:
        processors.append(hf.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature != 1.0:
        processors.append(hf.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        processors.append(hf.TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        processors.append(hf.TopPLogitsWarper(options.top_p))
    if options.min_p > 0.0:
        processors.append(hf.MinPLogitsWarper(options.min_p))
    return processors(torch.tensor([seen]), torch.from_numpy(logits.astype(np.float64))[None])[0].numpy()


@pytest.mark.parametrize("vocab", [5, 1000, 5003])
@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=0.7),
        SamplingOptions(temperature=1.0, top_k=1),
        SamplingOptions(temperature=1.3, top_k=40),
        SamplingOptions(temperature=1.0, top_k=100000),
        SamplingOptions(temperature=0.8, top_p=0.95),
        SamplingOptions(temperature=9.0, top_p=0.97),  # flat: more than the first candidates are needed
        SamplingOptions(temperature=1.0, top_p=1e-6),
        SamplingOptions(temperature=1.0, min_p=0.05),
        SamplingOptions(temperature=1.0, min_p=1.0),
        SamplingOptions(temperature=0.6, top_k=50, top_p=0.9, min_p=0.1, repetition_penalty=1.3),
        SamplingOptions(temperature=1.0, repetition_penalty=0.8),
    ],
    ids=repr,
)
def test_filters_are_those_of_transformers(options: SamplingOptions, vocab: int):
    logits = random_logits(vocab)
    seen = [0, 3, 3, 4]
    before = logits.copy()
    penalized = apply_repetition_penalty(logits, np.array(seen), options.repetition_penalty)
    result = filter_logits(penalized, options)
    expected = transformers_logits(logits, options, seen)
    np.testing.assert_allclose(result, expected - expected.max(), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(logits, before)


def test_top_k_keeps_ties():
    logits = np.array([1, 2, 2, 2, 0], np.float32)
    kept = filter_logits(logits, SamplingOptions(temperature=1.0, top_k=2))
    assert np.isfinite(kept).tolist() == [False, True, True, True, False]


def test_greedy_takes_the_lowest_of_equals_and_minds_the_penalty():
    logits = np.array([0, 5, 5, 4.9], np.float32)
    assert Sampler(SamplingOptions(), []).sample(logits) == 1
    sampler = Sampler(SamplingOptions(repetition_penalty=1.5), [1])
    assert [sampler.sample(logits) for _ in range(3)] == [2, 3, 1]  # what was chosen is penalized from then on


def test_draws_have_the_distribution():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=1), [])
    counts = np.bincount([sampler.sample(logits) for _ in range(20000)], minlength=4)
    expected = np.array([0.5, 0.3, 0.15, 0.05]) * 20000
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1000])
def test_inversion_is_that_of_the_running_sum(count: int):
    weights = np.random.default_rng(count).random(count).astype(np.float32)
    cumulative = np.cumsum(weights, dtype=np.float64)
    for uniform in [0.0, *np.random.default_rng(0).random(200), np.nextafter(1.0, 0.0)]:
        index = invert_cumulative(weights, uniform)
        below = cumulative[index] - weights[index]
        assert below - 1e-9 <= uniform * cumulative[-1] <= cumulative[index] + 1e-9


def test_excluded_tokens_are_never_drawn():
    logits = random_logits(500)
    sampler = Sampler(SamplingOptions(temperature=5.0, top_k=3, seed=2), [])
    drawn = {sampler.sample(logits) for _ in range(300)}
    assert drawn == set(np.argsort(logits)[-3:].tolist())


def test_the_generator_is_splitmix64():
    # The values that Rosetta Code's task "Pseudo-random numbers/Splitmix64" gives for this seed.
    random = SplitMix64(1234567)
    assert [random.next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    drawn = [random.uniform() for _ in range(10000)]
    assert 0 <= min(drawn) < 1e-3 and 1 - 1e-3 < max(drawn) < 1


def test_seed_fixes_the_tokens():
    logits = random_logits(1000)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=2.0, top_p=0.9, seed=seed), [])
        return [sampler.sample(logits) for _ in range(20)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [SamplingOptions(), SamplingOptions(temperature=1.0, seed=0)], ids=repr)
def test_logits_that_are_no_numbers_are_refused(bad: float, options: SamplingOptions):
    logits = random_logits(7)
    logits[3] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        Sampler(options, []).sample(logits)


EXTREME = {
    "ordinary": [1.0, 3.0, 2.0, -4.0],
    "largest of float32": [3e38, -3.4e38, 3.4e38, 3.39e38],
    "all below": [-3e38, -3.4e38, -2.9e38, -3.1e38],
    "denormal": [1e-45, 0.0, 3e-45, -1e-45],
}


@pytest.mark.parametrize("logits", EXTREME)
@pytest.mark.parametrize("penalty", [1e-30, 1.0, 1e30])
def test_a_tiny_temperature_is_greedy(logits: str, penalty: float):
    """Scores beyond every range of floats, and ties: never NaN, never another token than greedy has."""
    values = np.array(EXTREME[logits], np.float32)
    greedy = Sampler(SamplingOptions(repetition_penalty=penalty), [0, 3]).sample(values)
    small = [5e-324, 1e-300, 1e-60] if logits == "denormal" else [5e-324, 1e-300, 1e-45, 1e-38, 1e-10]
    for temperature in small:
        for filters in ({}, {"top_k": 3}, {"top_p": 5e-324}, {"top_p": 0.9}, {"min_p": 5e-324}):
            options = SamplingOptions(temperature=temperature, repetition_penalty=penalty, seed=1, **filters)
            assert Sampler(options, [0, 3]).sample(values) == greedy, options


@pytest.mark.parametrize("logits", ["ordinary", "denormal"])
def test_an_endless_temperature_is_blind(logits: str):
    sampler = Sampler(SamplingOptions(temperature=1.7e308, seed=1), [])
    counts = np.bincount([sampler.sample(np.array(EXTREME[logits], np.float32)) for _ in range(4000)], minlength=4)
    assert ((counts - 1000) ** 2 / 1000).sum() < 16.3  # 3 degrees of freedom, p = 0.001


def test_log_probabilities_and_top_tokens():
    import torch

    logits = random_logits(777, seed=5)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), 0)
    result = log_probabilities(logits)
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-12)
    values, indices = torch.topk(expected, 9)
    assert [token for token, _ in top_tokens(result, 9)] == indices.tolist()
    np.testing.assert_allclose([logprob for _, logprob in top_tokens(result, 9)], values.numpy())
    assert top_tokens(result, 0) == []
    assert len(top_tokens(result, 1000)) == 777


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e31),
        ("temperature", True),
        ("temperature", "0.5"),
        ("temperature", None),
        ("min_p", 10**400),
        ("seed", -1),
        ("seed", 1 << 64),
    ],
)
def test_options_out_of_range_are_named(name: str, value: float):
    with pytest.raises(InputError, match=f"^{name} is "):
        SamplingOptions(**{name: value})
