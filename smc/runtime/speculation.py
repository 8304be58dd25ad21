"""Speculation: likely next tokens are guessed, run beside the one that is due, and kept as far as they come true.

A step reads all weights once however few tokens it has, so a right guess is nearly free. The text is the same, token
for token and with the same seed, as without: every token is chosen from the logits that the model has there, and these
are the same bits however a text is cut into steps (docs/numerics.md). See Leviathan, Kalman and Matias, "Fast inference
from transformers via speculative decoding", 2023; a guess is one token here and no distribution, so that it is kept
exactly where the sampler draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from smc.errors import InputError

if TYPE_CHECKING:
    from smc.runtime.model import Model

LENGTHS = (0, 1, 3, 7, 15)
"""Guesses per step that `Pace` chooses among: steps of 1, 2, 4, 8 or 16 tokens."""

_FIRST_GUESS = 0.1
"""What a guess is taken to cost, as part of a step, before one was measured: little, so that it is tried."""
_MEMORY = 0.9
"""What remains of older observations when a new one comes."""
_SOONEST, _LATEST = 16, 512
"""Steps without guesses after which guessing is tried again: twice as many every time that it does not pay."""


class Drafter(Protocol):
    """Guesses how a text goes on; one object per text."""

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens (at least 1) that may follow `tokens`, the whole text so far; none where it knows none.

        Between two calls for a text only its end grows.
        """


class PromptLookup:
    """What followed the last few tokens when they stood in the text before.

    For answers that repeat their prompt: edited code, summaries, quotations (A. Saxena, "Prompt lookup decoding",
    2023). longest: how many tokens must agree at best; shortest: at least.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram → where it ended last
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


class DraftModel:
    """What a smaller model with the same tokenizer would say, greedily.

    model: opened for this alone, with a free sequence. Raises InputError where its tokenizer is not that of `target`.
    """

    def __init__(self, model: Model, target: Model) -> None:
        ours, theirs = target.artifact, model.artifact
        if (model.vocab_size, theirs.tokenizer) != (target.vocab_size, ours.tokenizer):
            raise InputError(f"{theirs.path} can't draft for {ours.path}: it has another tokenizer")
        self._model = model
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


class Pace:
    """How many guesses a step should have, from what steps took and how many guesses came true.

    The expected tokens per second decide. Where none pays, steps have no guesses, and one is tried from time to time.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # of a step by its number of guesses, from LENGTHS
        self._right, self._wrong = 1.0, 0.0
        self._plain, self._patience = 0, _SOONEST

    def guesses(self) -> int:
        """How many the next step should have, one of LENGTHS."""
        if self._plain >= self._patience:
            self._patience = min(2 * self._patience, _LATEST)
            self._plain = 0
            return 1
        best = max(LENGTHS, key=lambda count: self._expected_tokens(count) / self._expected_seconds(count))
        if best:
            self._plain, self._patience = 0, _SOONEST
        return best

    def learn(self, guesses: int, right: int, seconds: float) -> None:
        """A step with so many guesses took so long, guessing included, and so many came true."""
        count = next(length for length in LENGTHS if length >= min(guesses, LENGTHS[-1]))
        before = self._seconds.get(count, seconds)
        self._seconds[count] = before + (1 - _MEMORY) * (seconds - before)
        if guesses:
            self._right = _MEMORY * self._right + right
            self._wrong = _MEMORY * self._wrong + (right < guesses)
        else:
            self._plain += 1

    def _expected_tokens(self, count: int) -> float:
        """1 + p + p² + … up to `count` guesses, each right with probability p where those before it are."""
        chance = self._right / (self._right + self._wrong)
        return sum(chance**place for place in range(count + 1))

    def _expected_seconds(self, count: int) -> float:
        plain = self._seconds.get(0, 1.0)
        return self._seconds.get(count, plain * (1 + _FIRST_GUESS * count))
