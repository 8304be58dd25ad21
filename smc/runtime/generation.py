"""Generating text: prompt in, tokens one by one, text as it settles."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from smc.errors import InputError
from smc.runtime.sampling import Sampler, SamplingOptions, log_probabilities, top_tokens
from smc.runtime.streaming import Detokenizer, StopStrings

if TYPE_CHECKING:
    from smc.runtime.model import Model, Sequence

FinishReason = Literal["stop", "length", "interrupted"]

Outcome = int | NDArray[np.float32]
"""What running tokens brings: the id of the largest logit where only that is requested, or the logits [vocab]."""


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a chosen token and of the likeliest ones, in the model's own distribution.

    top: (token, log-probability) pairs, likeliest first, as many as were requested.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass
class Timings:
    """Seconds and tokens of the two parts of a generation.

    cached_tokens: of the prompt, found in the sequence and not run again. prompt_tokens: those that were run.
    decoded_tokens: tokens run one by one after the prompt, over decode_seconds (the last chosen token is never run).
    """

    cached_tokens: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decoded_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prefill speed; 0 where nothing was run."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Decode speed; 0 where nothing was run."""
        return self.decoded_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass
class GenerationResult:
    """What was generated, complete or up to where it was interrupted.

    text: without stop strings and special tokens. tokens: every chosen token, an end-of-sequence token included.
    logprobs: one entry per token if they were requested, else None.
    finish_reason: "stop" (end of sequence or stop string), "length" (max_tokens or context full), "interrupted".
    """

    prompt: list[int]
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason = "interrupted"
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True)
class GenerationOptions:
    """When to stop and what to report, beside how to choose.

    max_tokens: at most so many new tokens; None: until the context is full. stop: texts that end the generation.
    eos_token_ids: tokens that end it. logprobs: how many of the likeliest tokens to report; None: no log-probabilities.
    """

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    eos_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 0:
            raise InputError(f"max_tokens is {self.max_tokens}, but must be 0 or more")
        if self.logprobs is not None and self.logprobs < 0:
            raise InputError(f"logprobs is {self.logprobs}, but must be 0 or more")


class TextStream(Iterator[str]):
    """An iterator over pieces of text while they are generated; `result` grows along and is complete at the end.

    On KeyboardInterrupt, or `CancelledError` after `engine.cancel()`, the text so far stays in `result` and the
    exception passes on; a cancellation counts whenever it comes after the stream was made, between two tokens too.
    A sequence that the stream made is dropped at the end; one given to it stays and holds all tokens that were run.
    """

    def __init__(
        self, model: Model, prompt: list[int], options: GenerationOptions, sequence: Sequence | None = None
    ) -> None:
        context = model.context_length
        if not prompt:
            raise InputError("the prompt is empty: give at least one token")
        if len(prompt) > context:
            raise InputError(
                f"the prompt has {len(prompt)} tokens, but the context holds {context}; shorten it or open the "
                "artifact with a longer context (--ctx)"
            )
        self.result = GenerationResult(prompt, logprobs=None if options.logprobs is None else [])
        self._model = model
        self._options = options
        self._sequence = sequence
        self._since = model.engine.cancels
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop early; frees the sequence that the stream made."""
        self._pieces.close()

    def _run(self) -> Generator[str, None, None]:
        sequence = self._sequence if self._sequence is not None else self._model.text_sequence(self._since)
        stops = StopStrings(self._options.stop)
        detokenizer = Detokenizer(self._model.tokenizer, self.result.prompt) if self._model.has_tokenizer else None
        try:
            for token in self._tokens(sequence):
                piece = stops.push(detokenizer.push(token)) if detokenizer else ""
                if piece:
                    self.result.text += piece
                    yield piece
                if stops.stopped:
                    self.result.finish_reason = "stop"
                    return
            rest = stops.push(detokenizer.flush()) + stops.flush() if detokenizer else ""
            if stops.stopped:
                self.result.finish_reason = "stop"
            if rest:
                self.result.text += rest
                yield rest
        finally:
            if self._sequence is None:
                sequence.drop()

    def _tokens(self, sequence: Sequence) -> Iterator[int]:
        """Choose tokens until one ends the text; sets the finish reason and the timings."""
        result, options, timings = self.result, self._options, self.result.timings
        limit = len(result.prompt) + options.max_tokens if options.max_tokens is not None else None
        if limit == len(result.prompt):
            result.finish_reason = "length"
            return
        sampler = Sampler(options.sampling, result.prompt)
        timings.cached_tokens = sequence.keep_common(result.prompt[:-1])
        fresh = result.prompt[timings.cached_tokens :]
        started = time.perf_counter()
        run = self._largest if sampler.takes_largest and result.logprobs is None else self._logits()
        outcome = run(sequence, fresh)
        timings.prompt_tokens, timings.prompt_seconds = len(fresh), time.perf_counter() - started
        while True:
            token = outcome if isinstance(outcome, int) else sampler.sample(outcome)
            self._record(token, outcome)
            if token in options.eos_token_ids:
                result.finish_reason = "stop"
                return
            yield token
            length = len(result.prompt) + len(result.tokens)
            if length == limit or sequence.length == self._model.context_length:
                result.finish_reason = "length"
                return
            started = time.perf_counter()
            outcome = run(sequence, [token])
            timings.decode_seconds += time.perf_counter() - started
            timings.decoded_tokens += 1

    def _largest(self, sequence: Sequence, tokens: list[int]) -> Outcome:
        return sequence.next_token(tokens, since=self._since)

    def _logits(self) -> Callable[[Sequence, list[int]], Outcome]:
        """Runs tokens for the last one's logits, which the next call overwrites."""
        buffer = self._model.logits_buffer(1)
        return lambda sequence, tokens: sequence.extend(tokens, out=buffer, since=self._since)[0]

    def _record(self, token: int, outcome: Outcome) -> None:
        self.result.tokens.append(token)
        if self.result.logprobs is not None:
            assert not isinstance(outcome, int)
            log_probs = log_probabilities(outcome)
            top = top_tokens(log_probs, self._options.logprobs or 0)
            self.result.logprobs.append(TokenLogprob(token, float(log_probs[token]), top))
