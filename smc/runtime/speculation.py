"""Speculation: guesses the next tokens, runs them in the same step as the token before, and keeps those that are right.

A step reads all weights once, however few tokens it has, so a right guess is nearly free. The text is the same, token
for token and with the same seed, as without: every token is chosen from the model's logits, which have the same bits
however a text is cut into steps (docs/numerics.md). See Leviathan, Kalman and Matias, "Fast inference from transformers
via speculative decoding", 2023; here a guess is one token and not a distribution, so it is kept exactly if the sampler
draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from smc.errors import InputError

if TYPE_CHECKING:
    from smc.runtime.model import Model

LENGTHS = (0, 1, 3, 7, 15)
"""Guesses per step that `Pace` chooses among: steps of 1, 2, 4, 8 or 16 tokens."""

_FIRST_GUESS = 0.1
"""The assumed additional cost of a step with twice the tokens, before one was measured: low, so that it is tried."""
_WORTH = 1.02
"""How much faster than plain steps those with guesses must seem."""
_MEMORY = 0.9
"""The weight of older observations when a new one comes."""
_SOONEST, _LATEST = 16, 512
"""Steps without guesses after which guessing is tried again; the number doubles each time that it does not pay."""


class Drafter(Protocol):
    """Guesses the next tokens of a text; one object per text."""

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens (at least 1) that may follow `tokens`, the whole text so far; none without a guess.

        Between two calls for a text only its end grows.
        """

    def close(self) -> None:
        """The text has ended."""


class PromptLookup:
    """The tokens that followed the last few tokens where they occurred in the text before.

    For answers that repeat their prompt: edited code, summaries, quotations (A. Saxena, "Prompt lookup decoding",
    2023). longest: how many tokens must agree at best; shortest: at least.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram → where it last ended
        self._known = 0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """See `Drafter`."""
        for end in range(max(self._known, 1), len(tokens)):  # the n-grams that end before the last token
            for size in self._sizes:
                if end >= size:
                    self._ends[tuple(tokens[end - size : end])] = end
        self._known = len(tokens)
        for size in self._sizes:
            if len(tokens) >= size and (found := self._ends.get(tuple(tokens[-size:]))) is not None:
                return list(tokens[found : found + most])
        return []

    def close(self) -> None:
        """See `Drafter`: there is nothing to free."""


class DraftModel:
    """The greedy tokens of a smaller model with the same tokenizer.

    model: a model for drafting only, with a free sequence for each text. on_close: `close` calls it with this object.
    Raises InputError if its tokenizer is not that of `target`.
    """

    def __init__(
        self, model: Model, target: Model, on_close: Callable[[DraftModel], None] = lambda drafter: None
    ) -> None:
        ours, theirs = target.artifact, model.artifact
        if (model.vocab_size, theirs.tokenizer) != (target.vocab_size, ours.tokenizer):
            raise InputError(
                f"{theirs.path} can't draft for {ours.path}: it has another tokenizer; choose a model of the same "
                "family"
            )
        self._model = model
        self._on_close = on_close
        self._sequence = model.new_sequence()

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """See `Drafter`."""
        sequence, guesses = self._sequence, list[int]()
        most = min(most, self._model.context_length - len(tokens) + 1)
        if most < 1:
            return []
        kept = sequence.keep_common(tokens[:-1])
        pending = list(tokens[kept:])
        while len(guesses) < most:
            pending = [sequence.next_token(pending)]
            guesses += pending
        return guesses

    def close(self) -> None:
        """See `Drafter`: the next text may begin as this one did, so what was run is kept."""
        self._on_close(self)


class StepTimes:
    """The measured times of steps by how many tokens they have."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def learn(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long, guessing included."""
        before = self._seconds.get(tokens, seconds)
        self._seconds[tokens] = before + (1 - _MEMORY) * (min(seconds, 2 * before) - before)

    def expected(self, tokens: int) -> float:
        """Seconds of a step: measured, or else the least that is possible by its neighbours' times.

        A step takes no less than one with fewer tokens, and no less per token than one with more.
        """
        known = self._seconds
        if not known:
            return 1 + _FIRST_GUESS * tokens
        if tokens in known:  # perhaps long ago: then those of larger steps say more
            return min(seconds for count, seconds in known.items() if count >= tokens)
        below = max((count for count in known if count < tokens), default=None)
        above = min((count for count in known if count > tokens), default=None)
        if above is None:
            assert below is not None
            return known[below] * (1 + _FIRST_GUESS * (tokens - below) / below)
        least = known[above] * tokens / above
        return least if below is None else max(known[below], least)


class Pace:
    """Chooses the number of guesses per step, from the time of steps and the share of right guesses.

    The expected tokens per second decide. If no number pays, steps have no guesses, and one is tried from time to time.
    """

    def __init__(self) -> None:
        self._times = StepTimes()  # by 1 + the number of guesses, from LENGTHS
        self._right, self._wrong = 1.0, 0.5  # so that the first guesses are few
        self._plain, self._patience = 0, _SOONEST

    def guesses(self) -> int:
        """The number of guesses for the next step, one of LENGTHS."""
        if self._plain >= self._patience:
            self._patience = min(2 * self._patience, _LATEST)
            self._plain = 0
            return 1
        speed = {count: self._expected_tokens(count) / self._times.expected(1 + count) for count in LENGTHS}
        speed[0] *= _WORTH  # else guesses that are never right would go on where a plain step was slow by chance
        best = max(speed, key=lambda count: speed[count])
        if best:
            self._plain, self._patience = 0, _SOONEST
        return best

    def learn(self, guesses: int, right: int, seconds: float) -> None:
        """Record a step: its guesses, its seconds (guessing included), and how many guesses were right."""
        count = next(length for length in LENGTHS if length >= min(guesses, LENGTHS[-1]))
        self._times.learn(1 + count, seconds)
        if guesses:
            self._right = _MEMORY * self._right + right
            self._wrong = _MEMORY * self._wrong + (right < guesses)
        else:
            self._plain += 1

    def _expected_tokens(self, count: int) -> float:
        """1 + p + p² + … for `count` guesses, each right with probability p if those before it are."""
        chance = self._right / (self._right + self._wrong)
        return sum(chance**place for place in range(count + 1))
