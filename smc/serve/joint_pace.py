"""How many guesses the texts of a batch get, so that speculation pays or stops (smc/runtime/speculation.py).

A step of few tokens takes as long as reading the weights; with more texts or guesses it takes longer. So guesses
compete for a step: the likeliest to be right come first, as long as the expected tokens per second grow.
"""

from __future__ import annotations

from collections.abc import Sequence

from smc.runtime.speculation import StepTimes

MOST_GUESSES = 15
"""Of one text in a step."""

MOST_IN_STEP = 48
"""Of all texts in a step."""

_MEMORY = 0.9
"""The weight of older observations when a new one comes."""
_SOONEST, _LATEST = 16, 512
"""Steps without guesses after which a text is given one again: twice as many every time that it was wrong."""


class TextPace:
    """How often the guesses for one text come true."""

    def __init__(self, chance: float = 1.0) -> None:
        self._right, self._wrong = chance, 1.0 - chance
        self.plain, self.patience = 0, _SOONEST

    @property
    def chance(self) -> float:
        """The probability that a guess is right where those before it are."""
        return self._right / (self._right + self._wrong)

    def learn(self, guesses: int, right: int) -> None:
        """A step had so many guesses for it, and so many came true."""
        if not guesses:
            self.plain += 1
            return
        self._right = _MEMORY * self._right + right
        self._wrong = _MEMORY * self._wrong + (right < guesses)
        self.plain = 0
        self.patience = _SOONEST if right else min(2 * self.patience, _LATEST)


class JointPace:
    """Distributes the guesses of a step among its texts, by the measured times of steps."""

    def __init__(self) -> None:
        self._times = StepTimes()
        self._right, self._wrong = 1.0, 0.0  # of all texts: a new text begins with it

    def new_text(self) -> TextPace:
        """For a text that begins."""
        return TextPace(self._right / (self._right + self._wrong))

    def counts(self, paces: Sequence[TextPace], rooms: Sequence[int]) -> list[int]:
        """Guesses by text, each at most rooms[i]."""
        offers = sorted(
            (-pace.chance**place, place, index)
            for index, (pace, room) in enumerate(zip(paces, rooms, strict=True))
            for place in range(1, min(room, MOST_GUESSES) + 1)
        )[:MOST_IN_STEP]
        tokens: float = len(paces)
        best, most = tokens / self._times.expected(len(paces)), 0
        for count, (minus_chance, _, _) in enumerate(offers, 1):
            tokens -= minus_chance
            speed = tokens / self._times.expected(len(paces) + count)
            if speed > best:
                best, most = speed, count
        counts = [0] * len(paces)
        for _, _, index in offers[:most]:
            counts[index] += 1
        for index, pace in enumerate(paces):
            if not counts[index] and rooms[index] > 0 and pace.plain >= pace.patience:
                counts[index], pace.plain = 1, 0
        return counts

    def learn(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long, guessing included."""
        self._times.learn(tokens, seconds)

    def learn_guesses(self, guesses: int, right: int) -> None:
        """Of any text."""
        if guesses:
            self._right = 0.99 * self._right + right
            self._wrong = 0.99 * self._wrong + (right < guesses)
