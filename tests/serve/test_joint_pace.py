"""Guesses of a batch, in a simulation: where they pay they are made, where they don't they stop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from smc.serve.joint_pace import MOST_GUESSES, MOST_IN_STEP, JointPace, TextPace

ROOM = 1000


def simulate(chances: list[float], seconds: Callable[[int], float], steps: int) -> tuple[float, list[float]]:
    """Tokens per second beside those of plain steps, and guesses per step by text, after a while."""
    random, pace = np.random.default_rng(0), JointPace()
    texts = [pace.new_text() for _ in chances]
    tokens = took = 0.0
    guessed = np.zeros(len(chances))
    for step in range(2 * steps):
        counts = pace.counts(texts, [ROOM] * len(texts))
        assert sum(counts) <= MOST_IN_STEP and max(counts) <= MOST_GUESSES
        cost = seconds(len(texts) + sum(counts))
        pace.learn(len(texts) + sum(counts), cost)
        for index, (text, count, chance) in enumerate(zip(texts, counts, chances, strict=True)):
            right = 0
            while right < count and random.random() < chance:
                right += 1
            text.learn(count, right)
            pace.learn_guesses(count, right)
            if step >= steps:
                tokens += 1 + right
                guessed[index] += count
        if step >= steps:
            took += cost
    plain = len(chances) / seconds(len(chances))
    return tokens / took / plain, (guessed / steps).tolist()


def bandwidth_bound(tokens: int) -> float:
    """A step takes as long as reading the weights, up to 8 tokens."""
    return 1.0 if tokens <= 8 else tokens / 8


def test_one_text_whose_guesses_are_right():
    gain, [guesses] = simulate([0.9], bandwidth_bound, 400)
    assert gain > 4 and 5 < guesses <= 8  # at best (1 - 0.9**8) / 0.1 = 5.7


def test_one_text_whose_guesses_are_wrong():
    gain, [guesses] = simulate([0.0], lambda tokens: 0.9 + 0.1 * tokens, 2000)
    assert gain > 0.995 and guesses < 0.02


def test_a_batch_that_is_bound_by_multiplication():
    gain, guesses = simulate([0.5] * 16, lambda tokens: tokens / 16, 2000)
    assert gain > 0.97 and sum(guesses) < 1


def test_the_text_whose_guesses_are_right_gets_them():
    gain, [good, bad] = simulate([0.95, 0.02], bandwidth_bound, 1000)
    assert gain > 2 and good > 4 and bad < 0.7


def test_rooms_are_kept():
    pace = JointPace()
    assert pace.counts([TextPace(), TextPace()], [0, 2])[0] == 0
    assert max(pace.counts([TextPace(), TextPace()], [3, 2])) <= 3
    assert pace.counts([], []) == []
