"""The state machine without an engine: outcomes are told to it by hand."""

from __future__ import annotations

import numpy as np
import pytest

from smc.errors import InputError
from smc.runtime.generation import Generation, GenerationOptions
from smc.runtime.sampling import Sampler, SamplingOptions
from tests.runtime.conftest import VOCAB, byte_tokenizer

EOS = 257


def told(text: str) -> list[int]:
    return list(byte_tokenizer().encode(text).ids)


def machine(prompt: str = "ab", context: int = 100, **options: object) -> Generation:
    return Generation(
        told(prompt), GenerationOptions(eos_token_ids=frozenset({EOS}), **options), byte_tokenizer(), context
    )


def tell(generation: Generation, tokens: list[int]) -> list[str]:
    """Pieces until it is done or the tokens are."""
    pieces = []
    for token in tokens:
        following = generation.advance(token)
        pieces.append(generation.piece)
        assert (following is None) == generation.done
        if generation.done:
            break
        assert following == token
    return pieces


def test_text_ends_at_the_end_token():
    generation = machine()
    assert tell(generation, [*told("hello"), EOS, *told("more")]) == [*"hello", ""]
    assert generation.result.text == "hello"
    assert generation.result.tokens == [*told("hello"), EOS]
    assert generation.result.finish_reason == "stop"


def test_characters_come_whole():
    generation = machine(max_tokens=5)
    assert tell(generation, told("aé€")) == ["a", "", "é", "", "\ufffd"]
    assert generation.result.finish_reason == "length"  # in the middle of the last character
    generation = machine(max_tokens=5)
    assert tell(generation, told("é€")) == ["", "é", "", "", "€"]


def test_what_may_begin_a_stop_text_is_held_back():
    generation = machine(stop=("END",), max_tokens=20)
    assert tell(generation, told("an EN ENDx")) == ["a", "n", " ", "", "", "EN ", "", "", ""]
    assert generation.result.text == "an EN "
    assert generation.result.finish_reason == "stop"


def test_held_back_text_comes_at_the_end():
    generation = machine(stop=("END",), max_tokens=2)
    assert tell(generation, told("EN")) == ["", "EN"]
    assert (generation.result.text, generation.result.finish_reason) == ("EN", "length")


def test_the_context_ends_a_text():
    generation = machine(context=4)
    tell(generation, told("wxyz"))
    assert generation.result.text == "wxy"  # "ab" and "wx" are run, "y" is only chosen
    assert generation.result.finish_reason == "length"
    with pytest.raises(InputError, match="the prompt has 2 tokens, but the context holds 1"):
        machine(context=1)


def test_no_tokens_wanted():
    generation = machine(max_tokens=0)
    assert generation.done and generation.result.finish_reason == "length"


class OnlyDigits:
    """Three digits."""

    def __init__(self) -> None:
        self.left = 3

    def restrict(self, logits: np.ndarray) -> np.ndarray:
        allowed = np.full_like(logits, -np.inf)
        digits = told("0123456789")
        allowed[digits] = logits[digits]
        return allowed

    def accept(self, token: int) -> bool:
        assert token in told("0123456789")
        self.left -= 1
        return self.left > 0

    def foresee(self) -> list[int]:
        return []


def test_a_constraint_chooses_among_what_it_allows():
    logits = np.zeros(VOCAB, np.float32)
    logits[told("x")] = 9
    logits[told("7")] = 3
    generation = Generation(told("a"), GenerationOptions(logprobs=1), byte_tokenizer(), 50, OnlyDigits())
    assert not generation.takes_largest
    while not generation.done:
        generation.advance(logits)
    assert generation.result.text == "777"
    assert generation.result.finish_reason == "stop"
    entry = generation.result.logprobs[0]
    # The log-probability is the model's own, over all tokens.
    assert entry.logprob == pytest.approx(3 - np.log(VOCAB - 2 + np.exp(9) + np.exp(3)), rel=1e-6)
    assert [token for token, _ in entry.top] == told("x")


def test_openai_penalties_and_bias():
    """logit - count · frequency - (count > 0) · presence, as OpenAI's reference says."""
    logits = np.array([1.0, 0.9, 0.2, 0.5], np.float32)
    sampler = Sampler(SamplingOptions(presence_penalty=0.3, frequency_penalty=0.25), [0, 0])
    # The prompt does not count. 0: 1.0, then 0.45; 1: 0.9, then 0.35; then 3: 0.5
    assert [sampler.sample(logits) for _ in range(4)] == [0, 1, 3, 0]
    assert Sampler(SamplingOptions(logit_bias=((2, 1.0),)), []).sample(logits) == 2
    assert Sampler(SamplingOptions(logit_bias=((0, -100.0),)), []).sample(logits) == 1
    for options in ({"presence_penalty": 2.5}, {"frequency_penalty": float("nan")}, {"logit_bias": ((0, 101.0),)}):
        with pytest.raises(InputError):
            SamplingOptions(**options)
