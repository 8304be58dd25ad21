"""The knapsack beside trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from smc.errors import InputError
from smc.passes import allocation
from smc.passes.allocation import Choice, allocate


def problem(seed, items=6, choices=4, unit=8):
    generator = np.random.default_rng(seed)
    return [
        [Choice(unit * int(generator.integers(1, 40)), float(generator.random())) for _ in range(choices)]
        for _ in range(items)
    ]


def measure(items, picked):
    chosen = [choices[index] for choices, index in zip(items, picked, strict=True)]
    return sum(choice.bits for choice in chosen), sum(choice.loss for choice in chosen)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.3])
def test_it_is_the_best_of_all(seed, share):
    items = problem(seed)
    least, most = (sum(pick(c.bits for c in choices) for choices in items) for pick in (min, max))
    budget = int(least + share * (most - least))
    bits, loss = measure(items, allocate(items, budget))
    assert bits <= budget
    every = (measure(items, picked) for picked in itertools.product(range(4), repeat=6))
    assert loss == pytest.approx(min(other for size, other in every if size <= budget))


def test_with_larger_units_it_stays_within_the_budget_and_near(monkeypatch):
    items = problem(1, items=30, choices=5, unit=1)
    budget = 700
    exact = measure(items, allocate(items, budget))
    monkeypatch.setattr(allocation, "MOST_UNITS", 256)
    coarse = measure(items, allocate(items, budget))
    assert coarse[0] <= budget
    assert exact[1] <= coarse[1] < 1.1 * exact[1]


def test_too_small_a_budget_says_the_least():
    with pytest.raises(InputError, match="3 bits are too few: give at least 5"):
        allocate([[Choice(2, 1.0), Choice(8, 0.5)], [Choice(3, 1.0)]], 3)
