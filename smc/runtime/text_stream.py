"""One text that is generated: a `Generation` with a sequence of the engine."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from smc.runtime.generation import Constraint, Generation, GenerationOptions, GenerationResult, Outcome
from smc.runtime.speculation import LENGTHS, Drafter, Pace

if TYPE_CHECKING:
    from smc.runtime.model import Model, Sequence


class TextStream(Iterator[str]):
    """An iterator over parts of a text while they are generated; `result` grows with them and is complete at the end.

    On KeyboardInterrupt, or `CancelledError` after `engine.cancel()`, the text so far stays in `result` and the
    exception is raised; a cancellation counts at any time after the stream was made, also between two tokens. A
    sequence that the stream made is dropped at the end; one given to it stays and holds all tokens that were run.
    drafter: guesses tokens, which changes only the time.
    """

    def __init__(
        self,
        model: Model,
        prompt: list[int],
        options: GenerationOptions,
        sequence: Sequence | None = None,
        constraint: Constraint | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        tokenizer = model.tokenizer if model.has_tokenizer else None
        self._generation = Generation(prompt, options, tokenizer, model.context_length, constraint)
        self._model = model
        self._sequence = sequence
        self._drafter, self._pace, self._step_seconds = drafter, Pace(), 0.0
        self._drafted = False  # whether the pace learns from the last step
        self._most_guesses = LENGTHS[-1] if drafter is not None or constraint is not None else 0
        self._since = model.engine.cancels
        self._pieces = self._run()

    @property
    def result(self) -> GenerationResult:
        """The result so far."""
        return self._generation.result

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop early; frees the sequence that the stream made."""
        self._pieces.close()

    def _run(self) -> Generator[str, None, None]:
        sequence = self._sequence if self._sequence is not None else self._model.text_sequence(self._since)
        generation, timings = self._generation, self.result.timings
        try:
            if generation.done:
                return
            timings.cached_tokens = sequence.keep_common(self.result.prompt[:-1])
            fresh, guesses = self.result.prompt[timings.cached_tokens :], list[int]()
            text = list(self.result.prompt)
            buffer = None if generation.takes_largest else self._model.logits_buffer(1 + self._most_guesses)
            started = time.perf_counter()
            outcomes = self._outcomes(sequence, fresh, 1, buffer)
            timings.prompt_tokens, timings.prompt_seconds = len(fresh), time.perf_counter() - started
            while True:
                for right, outcome in enumerate(outcomes):  # those after right guesses
                    token = generation.advance(outcome)
                    if generation.piece:
                        yield generation.piece
                    if token is None:
                        return
                    text.append(token)
                    if right == len(guesses) or token != guesses[right]:
                        break
                    timings.decoded_tokens += 1
                    timings.right_guesses += 1
                assert token is not None
                started = time.perf_counter()
                if right < len(guesses):
                    sequence.truncate(sequence.length - len(guesses) + right)
                guesses = self._guess(text, right, len(guesses))
                timings.guesses += len(guesses)
                outcomes = self._outcomes(sequence, [token, *guesses], 1 + len(guesses), buffer)
                self._step_seconds = time.perf_counter() - started
                timings.decode_seconds += self._step_seconds
                timings.decoded_tokens += 1
        finally:
            if self._sequence is None:
                sequence.drop()
            elif self._most_guesses and not self._model.closed:
                sequence.keep_common([*self.result.prompt, *self.result.tokens])

    def _outcomes(
        self, sequence: Sequence, tokens: list[int], last: int, buffer: NDArray[np.float32] | None
    ) -> list[Outcome]:
        """Run tokens; returns the outcomes of the last ones; `buffer` takes those that are logits."""
        if buffer is None:
            if last == 1:
                return [sequence.next_token(tokens, since=self._since)]
            return list(sequence.next_tokens(tokens, since=self._since))
        logits: Literal["last", "all"] = "last" if last == 1 else "all"
        return list(sequence.extend(tokens, logits, out=buffer[:last], since=self._since))

    def _guess(self, text: list[int], right: int, guesses: int) -> list[int]:
        """Guesses of the tokens after `text`, after a step with right guesses."""
        room = min(self._model.context_length - len(text), self._generation.most_tokens - len(self.result.tokens) - 1)
        if self._drafter is not None and self._drafted:
            self._pace.learn(guesses, right, self._step_seconds)
        foreseen = self._generation.foresee(min(room, self._most_guesses))
        self._drafted = not foreseen
        if foreseen or self._drafter is None:
            return foreseen
        count = min(self._pace.guesses(), room)
        return self._drafter.propose(text, count)[:count] if count > 0 else []
