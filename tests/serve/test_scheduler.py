"""The scheduler with a real model: bits do not depend on the batch, and one text's fault is not another's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smc
from smc.errors import InputError
from smc.runtime import Model
from smc.runtime.drafters import Drafters
from smc.runtime.generation import Generation
from smc.serve.scheduler import Event, Limits, QueueFullError, Scheduler, StoppingError, Text


class Listener:
    """Collects events and waits for ends."""

    def __init__(self) -> None:
        self.ended: dict[Text, Event] = {}
        self._changed = threading.Condition()

    def post(self, events: list[tuple[Text, Event]]) -> None:
        with self._changed:
            self.ended |= {text: event for text, event in events if event.done}
            self._changed.notify_all()

    def wait(self, texts: list[Text]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: all(text in self.ended for text in texts), 120)


@pytest.fixture
def model(make_checkpoint: Callable[..., tuple[Path, Any]], tmp_path: Path) -> Model:
    folder, _ = make_checkpoint("Llama")
    module = smc.apply(smc.load_checkpoint(folder), ["quantize-rtn:bits=4,group=16"])
    smc.compile(module, out=tmp_path / "tiny.smc")
    return smc.load(tmp_path / "tiny.smc", threads=2, sequences=7)


def text_of(model: Model, prompt: list[int], **options: Any) -> Text:
    return Text(Generation(prompt, model.generation_options(**options), None, model.context_length))


def test_tokens_are_those_of_the_model_alone(model: Model):
    """Odd sizes, short and long prompts, chunked prefill beside decode, forks of common beginnings, sampling."""
    random = np.random.default_rng(5)
    shared = random.integers(0, 96, 70).tolist()
    prompts = [random.integers(0, 96, 1 + 13 * (i % 7)).tolist() for i in range(14)]
    prompts += [[*shared, *random.integers(0, 96, 3 + i).tolist()] for i in range(6)]
    options = [
        {"max_tokens": 5 + 7 * (i % 5), **({"temperature": 1.5, "seed": i} if i % 4 == 0 else {})}
        for i in range(len(prompts))
    ]
    alone = [model.generate(p, **o).tokens for p, o in zip(prompts, options, strict=True)]
    listener = Listener()
    scheduler = Scheduler(model, listener.post, Limits(running=4, step_tokens=32))
    texts = [text_of(model, p, **o) for p, o in zip(prompts, options, strict=True)]
    for text in texts:
        scheduler.submit(text)
    listener.wait(texts)
    assert [text.result.tokens for text in texts] == alone
    assert {text.result.finish_reason for text in texts} == {"length"}
    assert sum(text.result.timings.cached_tokens >= 70 for text in texts[14:]) == 5
    assert scheduler.step_tokens / scheduler.steps > 4  # it did batch
    scheduler.stop()
    with pytest.raises(StoppingError):
        scheduler.submit(text_of(model, [1]))
    model.close()


@pytest.mark.parametrize("what", ["lookup", "itself"])
def test_speculation_changes_no_token(model: Model, what: str):
    """Greedy and sampled texts, with limits and ends anywhere between guesses."""
    random = np.random.default_rng(7)
    cycle = random.integers(0, 96, 9).tolist()
    prompts = [[*cycle * 3, *random.integers(0, 96, i).tolist()] for i in range(12)]
    options = [
        {"max_tokens": 3 + 11 * (i % 5), **({"temperature": 0.7, "seed": i} if i % 3 == 0 else {})}
        for i in range(len(prompts))
    ]
    alone = [model.generate(p, **o).tokens for p, o in zip(prompts, options, strict=True)]
    listener = Listener()
    drafters = Drafters("lookup" if what == "lookup" else str(model.artifact.path), model, texts=4)
    scheduler = Scheduler(model, listener.post, Limits(running=4), drafters)
    texts = [text_of(model, p, **o) for p, o in zip(prompts, options, strict=True)]
    scheduler.submit_all(texts)
    listener.wait(texts)
    assert [text.result.tokens for text in texts] == alone
    assert scheduler.right_guesses > 0
    for text in texts:
        timings = text.result.timings
        assert timings.decoded_tokens == len(text.result.tokens) - 1 and timings.right_guesses <= timings.guesses
    again = scheduler.submit(text_of(model, [*prompts[1], *alone[1], 5], max_tokens=20))  # goes on behind a kept text
    listener.wait([again])
    assert again.result.timings.cached_tokens > 20
    assert again.result.tokens == model.generate(again.result.prompt, max_tokens=20).tokens
    scheduler.stop()
    drafters.close()
    model.close()


class Foreseeing:
    """Allows every token and foresees the right ones of `text`, but every third one wrong."""

    def __init__(self, text: list[int]) -> None:
        self.text, self.count = text, 0

    def restrict(self, logits: np.ndarray) -> np.ndarray:
        return logits.copy()

    def accept(self, token: int) -> bool:
        self.count += 1
        return True

    def foresee(self) -> list[int]:
        return [token + (i % 3 == 2) for i, token in enumerate(self.text)][self.count : self.count + 4]


@pytest.mark.parametrize("what", [None, "lookup"])
def test_what_constraints_foresee_changes_no_token(model: Model, what: str | None):
    """Beside texts without constraints, with and without a drafter."""
    prompts = [np.random.default_rng(i).integers(0, 95, 5).tolist() for i in range(9)]
    alone = [model.generate(prompt, max_tokens=20).tokens for prompt in prompts]
    listener, drafters = Listener(), Drafters(what, model, texts=3) if what else None
    scheduler = Scheduler(model, listener.post, Limits(running=3), drafters)
    texts = [text_of(model, prompt, max_tokens=20) for prompt in prompts]
    for text, tokens in list(zip(texts, alone, strict=True))[::2]:
        text.generation = Generation(
            text.result.prompt, text.generation.options, None, model.context_length, Foreseeing(tokens)
        )
    scheduler.submit_all(texts)
    listener.wait(texts)
    assert [text.result.tokens for text in texts] == alone
    for text in texts[::2]:
        assert text.result.timings.decoded_tokens == 19
        assert 0 < text.result.timings.right_guesses < text.result.timings.guesses
    scheduler.stop()
    if drafters:
        drafters.close()
    model.close()


def test_one_texts_fault_is_not_anothers(model: Model, monkeypatch: pytest.MonkeyPatch):
    """A step that fails is run again for each text alone."""
    step = model.engine.step

    def fails_for(tokens: np.ndarray, **options: Any) -> np.ndarray:
        if ((tokens["token"] == 77) & (tokens["index"] == 1)).any():
            raise InputError("a key or a value is beyond the range")
        return step(tokens, **options)

    monkeypatch.setattr(model.engine, "step", fails_for)
    listener = Listener()
    scheduler = Scheduler(model, listener.post, Limits(running=3))
    texts = [text_of(model, prompt, max_tokens=6) for prompt in ([5, 6, 7], [8, 77], [9, 10])]
    scheduler.submit_all(texts)
    listener.wait(texts)
    assert isinstance(listener.ended[texts[1]].error, InputError)
    for text in (texts[0], texts[2]):
        assert listener.ended[text].error is None and len(text.result.tokens) == 6
    scheduler.stop()
    model.close()


def test_limits(model: Model):
    listener = Listener()
    per_token = int(model.engine.facts.kv_bytes_per_token)
    scheduler = Scheduler(model, listener.post, Limits(running=2, waiting=2, kv_bytes=60 * per_token))
    with pytest.raises(InputError, match="may grow to 61 tokens"):
        scheduler.submit(text_of(model, [1], max_tokens=60))
    with pytest.raises(QueueFullError):
        scheduler.submit_all([text_of(model, [1], max_tokens=1) for _ in range(3)])
    texts = [text_of(model, [1, 2 + i], max_tokens=48) for i in range(2)]  # one fits at a time
    scheduler.submit_all(texts)
    listener.wait(texts)
    assert [len(text.result.tokens) for text in texts] == [48, 48]
    cancelled = scheduler.submit(text_of(model, [1], max_tokens=50))
    cancelled.cancel()
    listener.wait([cancelled])
    assert cancelled.result.finish_reason in ("interrupted", "length")
    scheduler.stop()
    model.close()
