"""Generating text as a state machine that does not run the engine: results of steps go in, tokens and text come out.

`Generation` chooses tokens, looks for stop strings, joins bytes to characters and checks limits. `TextStream` steps the
engine for one of them, a server for many at once (smc/serve/scheduler.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from smc.errors import InputError
from smc.runtime.sampling import Sampler, SamplingOptions, log_probabilities, top_tokens
from smc.runtime.streaming import Detokenizer, StopStrings

FinishReason = Literal["stop", "length", "interrupted"]

Outcome = int | NDArray[np.float32]
"""The result of running a token: the logits [vocab], or the id of the largest one if only that is requested."""


class Constraint(Protocol):
    """Says which tokens are allowed next; one object per text, because it follows the text."""

    def restrict(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of `logits` [vocab] with -inf for every token that is not allowed next."""

    def accept(self, token: int) -> bool:
        """Follow a chosen token; false if the text is complete and no token may follow."""

    def foresee(self) -> list[int]:
        """The likely next tokens where the text that follows is certain; else none."""


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a token of a text and of the likeliest ones there, in the model's own distribution.

    top: (token, log-probability) pairs, likeliest first, as many as were requested.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]

    @classmethod
    def of(cls, token: int, logits: NDArray[np.float32], count: int) -> TokenLogprob:
        """Of `token` by the `logits` [vocab] of its place, with the `count` likeliest."""
        log_probs = log_probabilities(logits)
        return cls(token, float(log_probs[token]), top_tokens(log_probs, count))


@dataclass
class Timings:
    """Seconds and tokens of the two parts of a generation.

    cached_tokens: tokens of the prompt that the sequence had already. prompt_tokens: those that were run.
    decoded_tokens: tokens that were run after the prompt, in decode_seconds (the last chosen token is never run).
    guesses: additional tokens that were run as guesses; right_guesses of them were right and count as decoded.
    """

    cached_tokens: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decoded_tokens: int = 0
    decode_seconds: float = 0.0
    guesses: int = 0
    right_guesses: int = 0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prefill speed; 0 if nothing was run."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Decode speed; 0 if nothing was run."""
        return self.decoded_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass
class GenerationResult:
    """The generated text, complete or until it was interrupted.

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
    """When to stop and what to report; SamplingOptions say how to choose tokens.

    max_tokens: most new tokens; None: until the context is full. stop: texts that end the generation. eos_token_ids:
    tokens that end it. logprobs: how many of the likeliest tokens to report; None: no log-probabilities. show_special:
    special tokens are shown as text (those that end the text never are).
    """

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    eos_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    show_special: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 0:
            raise InputError(f"max_tokens is {self.max_tokens}, but must be 0 or more")
        if self.logprobs is not None and self.logprobs < 0:
            raise InputError(f"logprobs is {self.logprobs}, but must be 0 or more")


class Generation:
    """A text while it is generated. Run the prompt, then give the result of each step to `advance` until `done`.

    result: the result so far. piece: the text that the last `advance` added, which may be empty. most_tokens: the most
    tokens that it may choose.
    prompt: tokens, at least one and no more than the context holds, else InputError. tokenizer: None makes no text.
    constraint: which tokens are allowed; None: all.
    """

    def __init__(
        self,
        prompt: list[int],
        options: GenerationOptions,
        tokenizer: Tokenizer | None,
        context_length: int,
        constraint: Constraint | None = None,
    ) -> None:
        if not prompt:
            raise InputError("the prompt is empty: give at least one token")
        if len(prompt) > context_length:
            raise InputError(
                f"the prompt has {len(prompt)} tokens, but the context holds {context_length}; shorten it or open the "
                "artifact with a longer context (--ctx)"
            )
        self.result = GenerationResult(prompt, logprobs=None if options.logprobs is None else [])
        self.piece = ""
        self.done = False
        self.options = options
        self.most_tokens = context_length + 1 - len(prompt)  # the last token is never run
        if options.max_tokens is not None:
            self.most_tokens = min(self.most_tokens, options.max_tokens)
        self._sampler = Sampler(options.sampling, prompt)
        self._constraint = constraint
        self._stops = StopStrings(options.stop)
        self._detokenizer = Detokenizer(tokenizer, prompt, options.show_special) if tokenizer else None
        if self.most_tokens == 0:
            self._finish("length")

    @property
    def takes_largest(self) -> bool:
        """Whether `advance` needs the id of the largest logit only."""
        return self._sampler.takes_largest and self.result.logprobs is None and self._constraint is None

    def advance(self, outcome: Outcome) -> int | None:
        """Choose the next token; returns it, to be run in the next step, or None if the text ends.

        outcome: the result of the last token; if `takes_largest`, the id of its largest logit suffices. Logits [vocab]
        are neither changed nor kept. Raises InputError for logits that are NaN or infinite.
        """
        result, self.piece = self.result, ""
        token = self._choose(outcome)
        result.tokens.append(token)
        if token in self.options.eos_token_ids:
            self._finish("stop")
            return None
        if self._detokenizer:
            self._add(self._detokenizer.push(token))
        if self._stops.stopped:
            self._end("stop")
        elif self._constraint is not None and not self._constraint.accept(token):
            self._finish("stop")
        elif len(result.tokens) == self.most_tokens:
            self._finish("length")
        return None if self.done else token

    def foresee(self, most: int) -> list[int]:
        """Guesses of up to `most` next tokens, from the constraint: nearly always right, so they pay in any step."""
        return self._constraint.foresee()[:most] if self._constraint is not None and most > 0 else []

    def _choose(self, outcome: Outcome) -> int:
        if isinstance(outcome, int):
            assert self.takes_largest, "this text needs logits, not the id of the largest one"
            return outcome
        allowed = self._constraint.restrict(outcome) if self._constraint is not None else None
        token = self._sampler.sample(outcome, allowed)
        if self.result.logprobs is not None:
            self.result.logprobs.append(TokenLogprob.of(token, outcome, self.options.logprobs or 0))
        return token

    def _add(self, text: str) -> None:
        piece = self._stops.push(text)
        self.result.text += piece
        self.piece += piece

    def _finish(self, reason: FinishReason) -> None:
        """Add the text that was held back; it may still contain a stop string."""
        if self._detokenizer:
            self._add(self._detokenizer.flush())
            rest = self._stops.flush()
            self.result.text += rest
            self.piece += rest
        self._end("stop" if self._stops.stopped else reason)

    def _end(self, reason: FinishReason) -> None:
        self.result.finish_reason = reason
        self.done = True
