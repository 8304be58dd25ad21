"""Generation with the counting program, whose every token can be computed by hand."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from smc.errors import InputError
from smc.runtime import Model, load
from smc.runtime.interrupt import on_interrupt
from smc.runtime.sampling import log_probabilities
from tests.runtime.conftest import SLOW, byte_tokenizer, counting_logits, counting_text, manifest_for, write_artifact
from tests.test_errors import PANICS_AT_ENCODE, PANICS_AT_LOAD

EOS = 257


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Model]:
    with load(artifact, threads=2, sequences=2) as model:
        yield model


def expected_text(tokens: list[int]) -> str:
    return str(byte_tokenizer().decode(tokens, skip_special_tokens=True))


def prompt_without(token: int, count: int, length: int = 3) -> list[int]:
    """A prompt after which neither `token` nor SLOW is among the next `count` tokens."""
    for start in range(20, 250):
        prompt = [start + i for i in range(length)]
        if not {token, SLOW} & set(counting_text(prompt, count)):
            return prompt
    raise AssertionError


def prompt_with(token: int, place: int) -> list[int]:
    """A prompt whose continuation has `token` at `place` for the first time."""
    for a in range(20, 250):
        for b in range(20, 60):
            text = counting_text([a, b], place + 1)
            if token in text and text.index(token) == place:
                return [a, b]
    raise AssertionError


def test_greedy(model: Model):
    prompt = prompt_without(EOS, 40)
    stream = model.stream(prompt, max_tokens=40)
    pieces = list(stream)
    result = stream.result
    assert result.tokens == counting_text(prompt, 40)
    assert result.text == "".join(pieces) == expected_text(prompt + result.tokens)[len(expected_text(prompt)) :]
    assert result.finish_reason == "length"
    assert result.logprobs is None
    assert (result.timings.prompt_tokens, result.timings.decoded_tokens) == (3, 39)
    assert result.timings.decode_tokens_per_second > 0
    assert model.generate(prompt, max_tokens=40).tokens == result.tokens


def test_stops_at_the_end_of_sequence(model: Model):
    prompt = prompt_with(EOS, 3)
    result = model.generate(prompt, max_tokens=100)
    assert result.tokens == counting_text(prompt, 4)
    assert result.tokens[-1] == EOS
    assert result.finish_reason == "stop"


def test_max_tokens_zero_runs_nothing(model: Model):
    result = model.generate([20], max_tokens=0)
    assert (result.text, result.tokens, result.finish_reason) == ("", [], "length")


def test_ends_when_the_context_is_full(artifact: Path):
    with load(artifact, context_length=10, threads=1) as model:
        prompt = prompt_without(EOS, 10, length=7)
        result = model.generate(prompt)
        # 7 + 3 tokens are in the cache when the last one is chosen
        assert result.tokens == counting_text(prompt, 4)
        assert result.finish_reason == "length"
        full = prompt_without(EOS, 1, length=10)
        assert model.generate(full).tokens == counting_text(full, 1)
        with pytest.raises(InputError, match="prompt has 11 tokens, but the context holds 10"):
            model.stream([20] * 11)


def test_stop_string_across_tokens(model: Model):
    prompt = prompt_without(EOS, 60)
    text = model.generate(prompt, max_tokens=60).text
    stop = text[10:13]
    at = text.index(stop)
    stream = model.stream(prompt, max_tokens=60, stop=[stop])
    pieces = list(stream)
    assert stream.result.text == text[:at] == "".join(pieces)
    assert stream.result.finish_reason == "stop"
    assert len(stream.result.tokens) < 60
    assert model.generate(prompt, max_tokens=60, stop="never there").text == text


def test_logprobs_are_the_models(model: Model):
    result = model.generate([20, 30], max_tokens=3, logprobs=4, temperature=0.5, seed=1)
    tokens = [20, 30]
    assert result.logprobs is not None
    for entry, token in zip(result.logprobs, result.tokens, strict=True):
        wanted = log_probabilities(counting_logits(tokens)[-1])
        best = np.argsort(-wanted, kind="stable")[:4]
        assert entry.token == token
        assert entry.logprob == wanted[token]
        assert entry.top == [(int(i), wanted[i]) for i in best]
        tokens.append(token)


def test_seed(model: Model):
    options = {"max_tokens": 30, "temperature": 3.0}
    assert model.generate([20], seed=5, **options).tokens == model.generate([20], seed=5, **options).tokens
    assert model.generate([20], seed=5, **options).tokens != model.generate([20], seed=6, **options).tokens


def test_sequence_is_gone_on_with(model: Model):
    prompt = prompt_without(EOS, 60)
    with model.new_sequence() as sequence:
        first = model.generate(prompt, max_tokens=20, sequence=sequence)
        assert sequence.tokens == prompt + first.tokens[:-1]
        longer = [*prompt, *first.tokens, 50, 51]
        second = model.generate(longer, max_tokens=5, sequence=sequence)
        assert second.tokens == counting_text(longer, 5)
        assert (second.timings.cached_tokens, second.timings.prompt_tokens) == (len(longer) - 3, 3)
        other = [*prompt, 99]  # shares only the prompt
        assert model.generate(other, max_tokens=5, sequence=sequence).tokens == counting_text(other, 5)
        same = model.generate(other, max_tokens=5, sequence=sequence)
        assert same.tokens == counting_text(other, 5)
        assert same.timings.prompt_tokens == 1


def test_sequences_are_freed(model: Model):
    for _ in range(5):
        stream = model.stream([20, 21], max_tokens=10)
        next(stream)
        stream.close()
        model.generate([20, 21], max_tokens=2)
    sequences = [model.new_sequence(), model.new_sequence()]
    for sequence in sequences:
        sequence.drop()


def test_defaults_of_the_checkpoint(program: bytes, tmp_path: Path):
    def sampling(**generation: object) -> object:
        manifest = manifest_for(program, generation=generation)
        members = {"weights": bytes(64), "manifest.json": json.dumps(manifest), "program.so": program}
        with load(write_artifact(tmp_path / "model.smc", members), threads=1) as model:
            options = model.generation_options(top_k=7)
            return options.sampling.temperature, options.sampling.top_p, options.sampling.top_k, options.eos_token_ids

    assert sampling() == (0.0, 1.0, 7, frozenset())
    assert sampling(do_sample=True, top_p=0.9, top_k=3, eos_token_id=[5, 6]) == (1.0, 0.9, 7, frozenset({5, 6}))
    assert sampling(do_sample=True, temperature=0.6, eos_token_id=5) == (0.6, 1.0, 7, frozenset({5}))
    assert sampling(do_sample=False, temperature=0.6) == (0.0, 1.0, 7, frozenset())


def test_text_prompt_and_chat(model: Model):
    ids = byte_tokenizer().encode("hello").ids
    assert model.generate("hello", max_tokens=3).tokens == counting_text(ids, 3)
    chat = model.apply_chat_template([{"role": "user", "content": "hello"}])
    assert chat == [256, *ids, 257, *byte_tokenizer().encode("\n").ids, 258]
    with pytest.raises(InputError, match="prompt is empty"):
        model.stream("")


def test_without_tokenizer(program: bytes, tmp_path: Path):
    members = {"weights": bytes(64), "manifest.json": json.dumps(manifest_for(program)), "program.so": program}
    with load(write_artifact(tmp_path / "model.smc", members), threads=1) as model:
        result = model.generate([20, 30], max_tokens=3)
        assert (result.tokens, result.text) == (counting_text([20, 30], 3), "")
        for action in (lambda: model.encode("a"), lambda: model.generate([20], stop="x"), lambda: model.chat_template):
            with pytest.raises(InputError):
                action()


def test_settings_of_training_in_the_tokenizer_are_ignored(program: bytes, tmp_path: Path):
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9, pad_id=3)
    members = {"weights": bytes(64), "manifest.json": json.dumps(manifest_for(program)), "program.so": program}
    members["tokenizer.json"] = tokenizer.to_str()
    with load(write_artifact(tmp_path / "model.smc", members), threads=1) as model:
        assert model.encode("hello") == byte_tokenizer().encode("hello").ids
        assert model.encode("a") == byte_tokenizer().encode("a").ids


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "its tokenizer can't be read"),
        (PANICS_AT_LOAD, "its tokenizer can't be read"),
        (PANICS_AT_ENCODE, "can't encode this text"),
    ],
)
def test_damaged_tokenizer(program: bytes, tmp_path: Path, text: str, sentence: str):
    members = {"weights": bytes(64), "manifest.json": json.dumps(manifest_for(program)), "program.so": program}
    with (
        load(write_artifact(tmp_path / "model.smc", members | {"tokenizer.json": text}), threads=1) as model,
        pytest.raises(InputError, match=sentence),
    ):
        model.encode("a")


def test_interrupt_ends_the_running_step(model: Model):
    """Ctrl-C in the middle of a step that takes a second: it ends at the next layer, and what was there stays."""
    with model.new_sequence() as sequence:
        sequence.extend([20, 21])
        timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
        started = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt), on_interrupt(model.engine.cancel):
            for _ in model.stream([20, 21, SLOW], sequence=sequence):
                pass
        assert time.monotonic() - started < 0.8
        timer.join()
        assert sequence.tokens == [20, 21]
        np.testing.assert_array_equal(sequence.extend([22]), counting_logits([20, 21, 22])[-1:])


def test_runtime_needs_no_compiler(artifact: Path):
    code = (
        "import sys; from smc.runtime import load; m = load(sys.argv[1], threads=1); m.generate('hi', max_tokens=2);"
        "print([n for n in ('torch', 'tvm', 'transformers', 'networkx', 'smc.ir') if n in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", code, artifact], capture_output=True, text=True, env=environment)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_async_streams(model: Model):
    """Two at once in one event loop; leaving early frees the sequence; errors come through."""
    prompts = [prompt_without(EOS, 20), "hello"]
    alone = [model.generate(prompt, max_tokens=20).text for prompt in prompts]

    async def read(prompt: object) -> str:
        return "".join([piece async for piece in model.stream_async(prompt, max_tokens=20)])

    async def both() -> list[str]:
        return list(await asyncio.gather(*(read(prompt) for prompt in prompts)))

    assert asyncio.run(both()) == alone
    messages = [{"role": "user", "content": "hi"}]
    said = "".join(model.chat(messages, max_tokens=5))
    assert said == model.generate(model.apply_chat_template(messages), max_tokens=5).text

    async def chat_and_leave() -> str:
        async for piece in model.stream_async(messages, max_tokens=5):
            return piece
        return ""

    assert said.startswith(asyncio.run(chat_and_leave()))

    async def too_long() -> None:
        await read("x" * 500)

    with pytest.raises(InputError, match="context holds"):
        asyncio.run(too_long())
