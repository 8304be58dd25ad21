"""Continuous batching: one thread that steps a model for all texts at once.

A step has one token of every text that is being generated, and chunks of the prompts of new texts. A text joins between
two steps and leaves as soon as it ends. Results do not depend on the other texts of a batch: the engine promises the
same bits (docs/numerics.md).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from smc.errors import InputError
from smc.runtime import Model, Sequence
from smc.runtime.binding import CancelledError, ClosedError
from smc.runtime.drafters import Drafters
from smc.runtime.generation import Generation, GenerationResult, Outcome
from smc.runtime.joint_step import Part, joint_step
from smc.runtime.speculation import Drafter
from smc.serve.joint_pace import MOST_IN_STEP, JointPace, TextPace
from smc.serve.prefix_cache import WORTH_A_FORK, PrefixCache, common_length


class QueueFullError(Exception):
    """The queue is full. retry_after: seconds after which there may be room."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class StoppingError(Exception):
    """The server is shutting down."""


@dataclass(frozen=True)
class Event:
    """The result of a step for a text. error: why the text failed; then it is `done`."""

    piece: str
    done: bool
    error: Exception | None = None


Post = Callable[[list[tuple["Text", Event]]], None]


@dataclass(eq=False)
class Text:
    """A text in the scheduler. streamed: its owner gets an update after every step, else only at the end.

    to_run: tokens for the next steps. guesses: more, on trial, behind them; drafted: whether the drafter made them.
    submitted, first_token: by time.perf_counter; 0: not yet.
    """

    generation: Generation
    listener: Any = None
    streamed: bool = False
    sequence: Sequence | None = None
    to_run: list[int] = field(default_factory=list)
    guesses: list[int] = field(default_factory=list)
    drafted: bool = False
    drafter: Drafter | None = None
    pace: TextPace | None = None
    cancelled: bool = False
    submitted: float = 0.0
    started: float = 0.0
    first_token: float = 0.0

    @property
    def result(self) -> GenerationResult:
        """The text so far."""
        return self.generation.result

    @property
    def reserved(self) -> int:
        """The number of tokens that its sequence may grow to."""
        return len(self.result.prompt) + self.generation.most_tokens

    @property
    def room(self) -> int:
        """Tokens that it may have on trial."""
        return self.generation.most_tokens - len(self.result.tokens) - 1

    def cancel(self) -> None:
        """Its client is gone: the text leaves before the next step. May be called from any thread."""
        self.cancelled = True


@dataclass(frozen=True)
class Limits:
    """Limits: the texts that run and that wait, the tokens of a step, the bytes of the KV cache."""

    running: int = 16
    waiting: int = 256
    step_tokens: int = 256
    kv_bytes: int = 1 << 62


class Scheduler:
    """Batches the texts of a model. `submit` may be called from any thread; call `stop` at the end.

    post: is called with the results of a step, in the scheduler's thread. The model must have been opened with more
    `sequences` than limits.running: the others keep prefixes. drafters: guess tokens, which changes no text.
    """

    def __init__(
        self, model: Model, post: Post, limits: Limits | None = None, drafters: Drafters | None = None
    ) -> None:
        self.model = model
        self._drafters, self._pace = drafters, JointPace()
        self.guesses = self.right_guesses = 0
        self.limits = limits or Limits()
        self.steps = self.step_tokens = 0
        self.step_seconds = 0.0
        self._post = post
        # One slot is left for embeddings and log-probabilities of prompts.
        self._cache = PrefixCache(model, model.engine.facts.sequences - 1)
        self._waiting: deque[Text] = deque()
        self._running: list[Text] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._buffer = model.logits_buffer(self.limits.running + MOST_IN_STEP * (2 if drafters else 1))
        self._thread = threading.Thread(target=self._work, name="smc-scheduler", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Texts in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return len(self._waiting)

    def submit(self, text: Text) -> Text:
        """Queue a text. Raises QueueFullError, or StoppingError after `stop`."""
        return self.submit_all([text])[0]

    def submit_all(self, texts: list[Text]) -> list[Text]:
        """Queue all of these texts or none. Raises as `submit`, and InputError if one could never fit."""
        for text in texts:
            if self._bytes(text.reserved) > self.limits.kv_bytes:
                raise InputError(
                    f"the text may grow to {text.reserved} tokens, which need {self._bytes(text.reserved) >> 20} MiB "
                    f"of KV cache, but this server has {self.limits.kv_bytes >> 20}: give a smaller max_tokens"
                )
        with self._changed:
            if self._stopping:
                raise StoppingError
            if len(self._waiting) + len(texts) > self.limits.waiting:
                raise QueueFullError(self._seconds_until_room())
            for text in texts:
                text.submitted = time.perf_counter()
                self._waiting.append(text)
            self._changed.notify()
        return texts

    def stop(self, patience: float = 0.0) -> None:
        """Take no more texts, wait up to `patience` seconds for running ones, then end them. Returns when all have
        ended."""
        deadline = time.perf_counter() + patience
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(max(0.0, deadline - time.perf_counter()))
        if self._thread.is_alive():
            for text in [*self._running, *self._waiting]:
                text.cancel()
            self._thread.join()

    # ---- the thread

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._stopping):
                    self._changed.wait()
                if self._stopping and not (self._waiting or self._running):
                    self._cache.clear()
                    return
                events = self._leave() + self._join()
            if self._running:
                events += self._step()
            if events:
                self._post(events)

    def _leave(self) -> list[tuple[Text, Event]]:
        """Remove cancelled texts."""
        gone = [text for text in [*self._running, *self._waiting] if text.cancelled]
        for text in gone:
            if text in self._running:
                self._end(text)
            else:
                self._waiting.remove(text)
        return [(text, Event("", done=True)) for text in gone]

    def _join(self) -> list[tuple[Text, Event]]:
        """Take texts from the queue in order while there is room; a text that waits for another's prefill is
        overtaken."""
        events: list[tuple[Text, Event]] = []
        for text in list(self._waiting):
            if len(self._running) >= self.limits.running:
                break
            if self._shares_a_prefill(text):
                continue
            if not self._fits(text):
                break
            prompt = text.result.prompt
            try:
                sequence = self._cache.take(prompt, text)
            except (InputError, RuntimeError) as error:
                self._waiting.remove(text)
                events.append((text, Event("", done=True, error=error)))
                continue
            if sequence is None:
                break
            self._waiting.remove(text)
            text.sequence, text.started = sequence, time.perf_counter()
            text.to_run = prompt[sequence.length :]
            text.result.timings.cached_tokens = sequence.length
            text.result.timings.prompt_tokens = len(text.to_run)
            if self._drafters is not None:
                text.drafter, text.pace = self._drafters.new(), self._pace.new_text()
            self._running.append(text)
        return events

    def _shares_a_prefill(self, text: Text) -> bool:
        """Whether a running text will soon have computed a beginning of this one's prompt, so that waiting is
        cheaper."""
        prompt = text.result.prompt
        for other in self._running:
            assert other.sequence is not None
            if len(other.to_run) > 1:
                common = common_length(other.result.prompt, prompt[:-1])
                if common >= other.sequence.length + WORTH_A_FORK:
                    return True
        return False

    def _fits(self, text: Text) -> bool:
        """Whether the KV cache has memory for a text; unused sequences are freed for it."""
        needed = text.reserved + sum(other.reserved for other in self._running)
        while self._bytes(needed + self._cache.idle_tokens()) > self.limits.kv_bytes:
            if not self._cache.forget_oldest():
                return self._bytes(needed) <= self.limits.kv_bytes
        return True

    def _bytes(self, tokens: int) -> int:
        return tokens * int(self.model.engine.facts.kv_bytes_per_token)

    def _seconds_until_room(self) -> float:
        """An estimate in seconds: the mean time that the running texts have taken so far, at least 1."""
        ages = [time.perf_counter() - text.started for text in self._running]
        return max(1.0, sum(ages) / len(ages)) if ages else 1.0

    def _step(self) -> list[tuple[Text, Event]]:
        """One step for all running texts: first those that generate, then prompts as far as the step has room."""
        texts = sorted(self._running, key=lambda text: len(text.to_run) > 1)
        room, chosen, parts = self.limits.step_tokens, [], []
        started = time.perf_counter()
        only_decodes = all(len(text.to_run) == 1 for text in texts)
        if only_decodes:
            self._guess(texts)
        for text in texts:
            assert text.sequence is not None
            chunk = text.to_run[: max(0, room)]
            if chunk:
                room -= len(chunk)
                chosen.append(text)
                wanted = 1 + len(text.guesses) if len(chunk) == len(text.to_run) else 0
                parts.append(Part(text.sequence, [*chunk, *text.guesses], wanted))
        largest = all(text.generation.takes_largest for text, part in zip(chosen, parts, strict=True) if part.wanted)
        try:
            outcomes: list[Any] = list(joint_step(self.model, parts, largest, self._buffer))
        except (CancelledError, ClosedError) as error:
            outcomes = [error] * len(parts)
        except (InputError, RuntimeError) as error:  # one text failed; the others continue
            outcomes = [error] if len(parts) == 1 else [self._alone(part) for part in parts]
        now = time.perf_counter()
        tokens = sum(len(part.tokens) for part in parts)
        self.steps += 1
        self.step_tokens += tokens
        self.step_seconds += now - started
        if self._drafters is not None and only_decodes:
            self._pace.learn(tokens, now - started)
        events = []
        for text, part, outcome in zip(chosen, parts, outcomes, strict=True):
            del text.to_run[: len(part.tokens) - len(text.guesses)]
            event = self._fail(text, outcome) if isinstance(outcome, Exception) else None
            if event is None and outcome:
                event = self._advance(text, outcome, now)
            if event is not None:
                events.append((text, event))
        return events

    def _guess(self, texts: list[Text]) -> None:
        """What follows the texts by their constraints, and what may follow the others, as far as it pays."""
        left = MOST_IN_STEP
        for text in texts:
            text.guesses = text.generation.foresee(min(text.room, left))
            text.drafted = not text.guesses and text.drafter is not None
            left -= len(text.guesses)
        if not (drafted := [text for text in texts if text.drafted]):
            return
        counts = self._pace.counts([text.pace for text in drafted if text.pace], [text.room for text in drafted])
        for text, count in zip(drafted, counts, strict=True):
            assert text.drafter is not None
            if count:
                known = [*text.result.prompt, *text.result.tokens]
                text.guesses = text.drafter.propose(known, count)[:count]

    def _alone(self, part: Part) -> Any:
        """The outcomes or exception of one part of a step. Logits are copied, because all steps share a buffer."""
        try:
            [outcomes] = joint_step(self.model, [part], False, self._buffer)
            return [outcome if isinstance(outcome, int) else outcome.copy() for outcome in outcomes]
        except (InputError, RuntimeError, CancelledError, ClosedError) as error:
            return error

    def _advance(self, text: Text, outcomes: list[Outcome], now: float) -> Event | None:
        """Take the outcomes of the token that was due and of the guesses behind it, as far as these come true."""
        timings, guesses, piece = text.result.timings, text.guesses, ""
        token, right = None, 0
        for outcome in outcomes:
            try:
                token = text.generation.advance(outcome)
            except InputError as error:
                return self._fail(text, error)
            piece += text.generation.piece
            if not text.first_token:
                text.first_token, timings.prompt_seconds = now, now - text.started
            else:
                timings.decoded_tokens += 1
                timings.decode_seconds = now - text.first_token
            if token is None or right == len(guesses) or token != guesses[right]:
                break
            right += 1
        self._settle_guesses(text, right)
        if token is None:
            self._end(text)
            return Event(piece, done=True)
        text.to_run = [token]
        return Event(piece, done=False) if text.streamed and piece else None

    def _settle_guesses(self, text: Text, right: int) -> None:
        """Count the guesses of a step, of which so many came true, and undo the others."""
        count, timings = len(text.guesses), text.result.timings
        if text.pace is not None and text.drafted:
            text.pace.learn(count, right)
            self._pace.learn_guesses(count, right)
        if right < count:
            assert text.sequence is not None
            text.sequence.truncate(text.sequence.length - count + right)
        timings.guesses += count
        timings.right_guesses += right
        self.guesses += count
        self.right_guesses += right
        text.guesses = []

    def _end(self, text: Text, keep: bool = True) -> None:
        """A text leaves the batch; keep: what its sequence holds may be used again."""
        self._running.remove(text)
        if text.drafter is not None:
            text.drafter.close()
        self._cache.give_back(text, keep)

    def _fail(self, text: Text, error: Exception) -> Event:
        text.guesses = []
        self._end(text, keep=False)
        return Event("", done=True, error=error)
