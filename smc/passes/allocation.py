"""Which encoding each matrix gets under a budget of bits: the multiple-choice knapsack, solved exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smc.errors import InputError
from smc.ir import ceil_div

MOST_UNITS = 1 << 20
"""Most units into which the bits between the least and the most are divided."""


@dataclass(frozen=True)
class Choice:
    """A way to store a matrix: the bits of the whole matrix, and the loss of quality."""

    bits: int
    loss: float


def allocate(items: Sequence[Sequence[Choice]], budget: int) -> list[int]:
    """For every item the index of one of its choices, so that the sum of losses is least and the sum of bits ≤ budget.

    By dynamic programming over the bits, in units of the greatest common divisor of all differences. If these would be
    more than MOST_UNITS, sizes are rounded up to larger units, which wastes at most one unit per item. Of equally good
    choices the first wins. InputError if even the smallest choices exceed the budget.
    """
    import numpy as np

    least = sum(min(choice.bits for choice in choices) for choices in items)
    if least > budget:
        raise InputError(f"{budget} bits are too few: give at least {least}")
    extra = [[choice.bits - min(c.bits for c in choices) for choice in choices] for choices in items]
    most = sum(max(bits) for bits in extra)
    room = min(budget - least, most)
    unit = math.gcd(*(bits for choices in extra for bits in choices)) or 1
    unit *= ceil_div(room // unit, MOST_UNITS) or 1
    capacity = room // unit
    best = np.zeros(capacity + 1)
    chosen = np.zeros((len(items), capacity + 1), np.uint8)
    for index, choices in enumerate(items):
        better = np.full(capacity + 1, np.inf)
        for number, choice in enumerate(choices):
            size = ceil_div(extra[index][number], unit)
            if size > capacity:
                continue
            offered = best[: capacity + 1 - size] + choice.loss
            wins = offered < better[size:]
            better[size:][wins] = offered[wins]
            chosen[index, size:][wins] = number
        best = better
    result, place = [], capacity
    for index in range(len(items) - 1, -1, -1):
        number = int(chosen[index, place])
        result.append(number)
        place -= ceil_div(extra[index][number], unit)
    return result[::-1]
