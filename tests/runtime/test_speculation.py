"""Speculation changes no token: oracles that are right, wrong or both, on the program whose tokens can be computed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smc.errors import InputError
from smc.runtime import Model, load
from smc.runtime.speculation import LENGTHS, DraftModel, Pace, PromptLookup, StepTimes
from tests.runtime.conftest import SLOW, VOCAB, counting_text

PROMPT = next([start, 40, 41] for start in range(20, 250) if SLOW not in counting_text([start, 40, 41], 80))


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Model]:
    with load(artifact, threads=2, sequences=2) as model:
        yield model


class Oracle:
    """Knows the text; every guess is spoiled with a chance."""

    def __init__(self, text: list[int], wrong: float, seed: int = 0) -> None:
        self.text, self.wrong, self.random = text, wrong, random.Random(seed)
        self.given = 0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        assert most >= 1 and list(tokens) == self.text[: len(tokens)]
        guesses = self.text[len(tokens) : len(tokens) + most]
        self.given += len(guesses)
        return [(token + 1) % VOCAB if self.random.random() < self.wrong else token for token in guesses]


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.9, "seed": 5}, {"logprobs": 2}, {"repetition_penalty": 1.3}], ids=str
)
def test_the_text_is_the_same(model: Model, wrong: float, options: dict[str, float]) -> None:
    plain = model.generate(PROMPT, max_tokens=70, **options)
    drafter = Oracle(PROMPT + plain.tokens, wrong)
    result = model.generate(PROMPT, max_tokens=70, drafter=drafter, **options)
    assert (result.tokens, result.text, result.finish_reason) == (plain.tokens, plain.text, plain.finish_reason)
    assert result.logprobs == plain.logprobs
    timings = result.timings
    assert timings.guesses == drafter.given > 0
    assert timings.decoded_tokens == len(result.tokens) - 1
    if wrong in (0.0, 1.0):
        assert timings.right_guesses == (timings.guesses if wrong == 0 else 0)


def test_the_pieces_and_stops_are_the_same(model: Model) -> None:
    text = counting_text(PROMPT, 30)
    stop = model.decode(text[11:13])
    plain = model.stream(PROMPT, max_tokens=30, stop=stop)
    expected = list(plain)
    stream = model.stream(PROMPT, max_tokens=30, stop=stop, drafter=Oracle(PROMPT + text, 0.0))
    assert list(stream) == expected
    assert stream.result.tokens == plain.result.tokens and stream.result.finish_reason == "stop"


@pytest.mark.parametrize("ends", ["all", "closed", "stop"])
def test_a_sequence_holds_only_what_came_true(model: Model, ends: str) -> None:
    text = counting_text(PROMPT, 40)
    stop = model.decode(text[20:22]) if ends == "stop" else ()
    with model.new_sequence() as sequence:
        drafter = Oracle(PROMPT + text, 0.2)
        stream = model.stream(PROMPT, max_tokens=40, stop=stop, sequence=sequence, drafter=drafter)
        for number, _ in enumerate(stream):
            if ends == "closed" and number == 9:
                stream.close()
                break
        everything = PROMPT + stream.result.tokens
        assert sequence.tokens == everything[: sequence.length] and sequence.length >= len(everything) - 1
        assert model.engine.sequence_length(sequence.slot) == sequence.length
        more = model.generate(everything, max_tokens=5, sequence=sequence)
        assert more.tokens == counting_text(everything, 5)


def test_guesses_stay_in_the_context(artifact: Path) -> None:
    with load(artifact, context_length=20) as model:
        text = counting_text(PROMPT, 30)
        result = model.generate(PROMPT, drafter=Oracle(PROMPT + text, 0.0))
        assert result.tokens == text[: 21 - len(PROMPT)] and result.finish_reason == "length"


def test_a_model_drafts_for_itself(model: Model, artifact: Path) -> None:
    with load(artifact, context_length=model.context_length) as small:
        drafter = DraftModel(small, model)
        for prompt in (PROMPT, PROMPT[:2]):  # the second text is another one
            result = model.generate(prompt, max_tokens=30, drafter=drafter)
            assert result.tokens == counting_text(prompt, len(result.tokens))
            assert result.timings.right_guesses == result.timings.guesses > 0


def test_a_draft_model_has_the_same_tokens(model: Model, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(artifact) as small:
        monkeypatch.setattr(small, "vocab_size", 7)
        with pytest.raises(InputError, match=r"can't draft for .*: it has another tokenizer"):
            DraftModel(small, model)


# ---- looking up


def looked_up(tokens: list[int], most: int, longest: int, shortest: int) -> list[int]:
    for size in range(longest, shortest - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[len(tokens) - size :]:
                return tokens[end : end + most]
    return []


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5), st.integers(1, 3))
def test_lookup_finds_the_latest_longest_match(text: list[int], most: int, step: int) -> None:
    drafter = PromptLookup(longest=4, shortest=2)
    for end in range(0, len(text) + 1, step):
        assert drafter.propose(text[:end], most) == looked_up(text[:end], most, 4, 2)


# ---- how many


def spend(pace: Pace, steps: int, right: float, cost: dict[int, float]) -> list[int]:
    """What a pace chooses where guesses are right with a chance and steps take what `cost` says."""
    source, chosen = random.Random(3), []
    for _ in range(steps):
        count = pace.guesses()
        came_true = 0
        while came_true < count and source.random() < right:
            came_true += 1
        pace.learn(count, came_true, cost[count])
        chosen.append(count)
    return chosen


FLAT = dict.fromkeys(LENGTHS, 0.002)
STEEP = {count: 0.002 * (1 + count) for count in LENGTHS}


def test_good_guesses_that_cost_nothing_make_long_steps() -> None:
    assert spend(Pace(), 200, 0.99, FLAT)[-50:] == [LENGTHS[-1]] * 50


@pytest.mark.parametrize(("right", "cost"), [(0.0, {**STEEP, 1: 0.0024}), (0.9, STEEP)])
def test_what_does_not_pay_is_tried_ever_less(right: float, cost: dict[int, float]) -> None:
    chosen = spend(Pace(), 3000, right, cost)
    assert sum(count > 0 for count in chosen[-1000:]) <= 3


def test_it_pays_again() -> None:
    pace = Pace()
    spend(pace, 3000, 0.0, {**STEEP, 1: 0.0024})
    assert spend(pace, 2000, 1.0, FLAT)[-1] > 0


def test_seconds_beside_what_was_measured() -> None:
    times = StepTimes()
    for tokens, seconds in ((2, 1.0), (10, 2.0)):
        times.learn(tokens, seconds)
    assert [times.expected(tokens) for tokens in (1, 2, 4, 8, 10)] == pytest.approx([0.5, 1.0, 1.0, 1.6, 2.0])
    assert times.expected(20) > 2.0
    times.learn(1, 1.5)  # a step that was slow by chance
    assert times.expected(1) == 1.0
