"""The server as OpenAI's own client sees it; every text is known by hand."""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from smc.runtime import load
from smc.serve.scheduler import Limits
from tests.runtime.conftest import SLOW, byte_tokenizer, counting_logits, counting_text
from tests.serve.conftest import client_of

EOS = 257
TOKENIZER = byte_tokenizer()


def told(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def decoded(prompt: list[int], tokens: list[int]) -> str:
    decode = TOKENIZER.decode
    return str(decode(prompt + tokens))[len(str(decode(prompt))) :]


def prompts_without(forbidden: set[int], count: int, length: int) -> list[list[int]]:
    """Prompts whose next `length` tokens have none of some tokens."""
    found = [p for p in ([a, b, 30] for a in range(20, 200) for b in (40, 41)) if p[0] != p[1]]
    return [p for p in found if not forbidden & set(counting_text(p, length))][:count]


def test_models(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["counting"]
    assert client.models.retrieve("counting").owned_by == "smc"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other': this server has counting"):
        client.models.retrieve("other")


def test_completion(client: openai.OpenAI):
    [prompt] = prompts_without({EOS, SLOW}, 1, 12)
    answer = client.completions.create(model="counting", prompt=prompt, max_tokens=12)
    assert answer.choices[0].text == decoded(prompt, counting_text(prompt, 12))
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 12)
    echoed = client.completions.create(model="counting", prompt="hello", max_tokens=2, echo=True)
    assert echoed.choices[0].text.startswith("hello")


def test_several_prompts_and_choices(client: openai.OpenAI):
    prompts = prompts_without({EOS, SLOW}, 3, 5)
    answer = client.completions.create(model="counting", prompt=prompts, max_tokens=5, n=2)
    texts = [decoded(prompt, counting_text(prompt, 5)) for prompt in prompts for _ in range(2)]
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 30)


def test_chat_and_its_stream_say_the_same(client: openai.OpenAI):
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]}]
    answer = client.chat.completions.create(model="counting", messages=messages, max_tokens=9)
    prompt = [256, *told("hello"), 257, *told("\n"), 258]
    assert answer.choices[0].message.content == decoded(prompt, counting_text(prompt, 9))
    assert answer.usage.prompt_tokens == len(prompt)
    stream = client.chat.completions.create(
        model="counting", messages=messages, max_tokens=9, stream=True, stream_options={"include_usage": True}
    )
    pieces = list(stream)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == answer.choices[0].message.content
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == "length"
    assert pieces[-1].usage.completion_tokens == 9 and pieces[-1].choices == []


def test_special_tokens_in_messages_are_text(client: openai.OpenAI):
    count = {
        text: client.chat.completions.create(
            model="counting", messages=[{"role": "user", "content": text}], max_tokens=1
        ).usage.prompt_tokens
        for text in ("", "<end>")
    }
    assert count["<end>"] == count[""] + 5  # five bytes, not one token


def test_stop(client: openai.OpenAI):
    [prompt] = prompts_without({EOS, SLOW}, 1, 60)
    text = client.completions.create(model="counting", prompt=prompt, max_tokens=60).choices[0].text
    stop = text[5:8]
    for streamed in (False, True):
        answer = client.completions.create(
            model="counting", prompt=prompt, max_tokens=60, stop=["never", stop], stream=streamed
        )
        choices = [piece.choices[0] for piece in answer] if streamed else answer.choices
        assert "".join(choice.text for choice in choices) == text[: text.index(stop)]
        assert choices[-1].finish_reason == "stop"


def test_logprobs(client: openai.OpenAI):
    prompt = [20, 40, 30]
    answer = client.completions.create(model="counting", prompt=prompt, max_tokens=2, logprobs=3)
    tokens = counting_text(prompt, 2)
    logits = counting_logits(prompt + tokens)[2:4].astype(np.float64)
    expected = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[[0, 1], tokens]
    assert answer.choices[0].logprobs.token_logprobs == pytest.approx(expected, rel=1e-6)
    assert [len(top) for top in answer.choices[0].logprobs.top_logprobs] == [3, 3]
    chat = client.chat.completions.create(
        model="counting", messages=[{"role": "user", "content": "x"}], max_tokens=3, logprobs=True, top_logprobs=2
    )
    entries = chat.choices[0].logprobs.content
    assert [len(entry.top_logprobs) for entry in entries] == [2, 2, 2]
    assert entries[0].logprob == entries[0].top_logprobs[0].logprob
    streamed = client.chat.completions.create(
        model="counting", messages=[{"role": "user", "content": "x"}], max_tokens=3, logprobs=True, stream=True
    )
    assert [e.logprob for p in streamed if p.choices[0].logprobs for e in p.choices[0].logprobs.content] == [
        entry.logprob for entry in entries
    ]


@pytest.mark.parametrize("length", [1, 3, 150], ids=["one token", "one step", "several steps"])
def test_logprobs_of_the_prompt_too(client: openai.OpenAI, length: int):
    """The counting program's logits, which numpy computes too; the first token has nothing before it."""
    prompt = [20 + i * 7 % 90 for i in range(length)]
    options: Any = {"model": "counting", "prompt": [prompt, [30, 40]], "logprobs": 2, "echo": True, "n": 2}
    answer = client.completions.create(**options, max_tokens=2)
    for choice, own in zip(answer.choices, [prompt, prompt, [30, 40], [30, 40]], strict=True):
        ids = own + counting_text(own, 2)
        logits = counting_logits(ids).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        places = range(1, len(ids))
        assert choice.text == TOKENIZER.decode(ids)
        assert choice.logprobs.token_logprobs[0] is choice.logprobs.top_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1:] == pytest.approx([expected[i - 1, ids[i]] for i in places], rel=1e-6)
        assert [max(top.values()) for top in choice.logprobs.top_logprobs[1:]] == pytest.approx(
            [expected[i - 1].max() for i in places], rel=1e-6
        )
        assert choice.logprobs.text_offset == list(range(len(ids)))
    only_prompt = client.completions.create(**options, max_tokens=0).choices[0]
    assert only_prompt.text == TOKENIZER.decode(prompt)
    assert only_prompt.logprobs.token_logprobs == answer.choices[0].logprobs.token_logprobs[:length]
    pieces = [piece.choices[0] for piece in client.completions.create(**options, max_tokens=2, stream=True)]
    for index, choice in enumerate(answer.choices):
        own_pieces = [piece for piece in pieces if piece.index == index]
        assert "".join(piece.text for piece in own_pieces) == choice.text
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            parts = [getattr(piece.logprobs, name) for piece in own_pieces]
            assert [value for part in parts for value in part] == getattr(choice.logprobs, name)


def test_sampling_is_that_of_the_model_alone(client: openai.OpenAI, artifact: Path):
    [prompt] = prompts_without({SLOW}, 1, 20)
    options = {"max_tokens": 15, "temperature": 3.0, "top_p": 0.9, "presence_penalty": 0.5, "seed": 11}
    answer = client.completions.create(
        model="counting", prompt=prompt, logit_bias={"65": 1.5}, extra_body={"top_k": 50}, **options
    )
    with load(artifact, threads=1) as model:
        alone = model.generate(prompt, logit_bias={65: 1.5}, top_k=50, **options)
    assert answer.choices[0].text == alone.text


def test_embeddings(client: openai.OpenAI, artifact: Path):
    answer = client.embeddings.create(model="counting", input=["ab", "hello"], encoding_format="float")
    coded = client.embeddings.create(model="counting", input=["ab", "hello"])  # base64, which the client decodes
    with load(artifact, threads=1) as model:
        for data, other, text in zip(answer.data, coded.data, ("ab", "hello"), strict=True):
            assert data.embedding == pytest.approx(model.embed(text).tolist())
            assert other.embedding == pytest.approx(data.embedding)
    assert base64.b64encode(b"x")
    assert answer.usage.prompt_tokens == 7


def test_texts_do_not_depend_on_who_shares_the_batch(client: openai.OpenAI, artifact: Path):
    """Greedy and sampled texts of many clients at once are those of the model alone."""
    prompts = prompts_without({SLOW}, 24, 40)
    options = [
        {"max_tokens": 10 + i, **({"temperature": 2.0, "seed": i} if i % 3 == 0 else {})} for i in range(len(prompts))
    ]
    with load(artifact, threads=1) as model:
        alone = [model.generate(p, **o).text for p, o in zip(prompts, options, strict=True)]

    def ask(index: int) -> str:
        answer = client.completions.create(model="counting", prompt=prompts[index], **options[index])
        return str(answer.choices[0].text)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(len(prompts)))) == alone


def test_a_shared_beginning_is_computed_once(client: openai.OpenAI):
    system = [*range(60, 250)][:120]
    usages = [
        client.completions.create(model="counting", prompt=[*system, 40 + i], max_tokens=2).usage for i in range(3)
    ]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages]
    assert cached[0] < 10
    assert cached[1:] == [120, 120]


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"model": "other"}, 404, "other"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"max_tokens": "many"}, 400, "max_tokens"),
        ({"n": 0}, 400, "n"),
        ({"n": 1000}, 400, "n"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, 400, "content"),
        ({"messages": [{"role": "user", "content": "long " * 100}]}, 400, "context holds 200"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"100000": 1}}, 400, "100000"),
        ({"logit_bias": {"1": 1000}}, 400, "logit_bias"),
        ({"presence_penalty": 3}, 400, "presence_penalty"),
        ({"top_logprobs": 50, "logprobs": True}, 400, "top_logprobs"),
        ({"seed": 1 << 70}, 400, "seed"),
        ({"stop": ["x"] * 100}, 400, "stop"),
    ],
)
def test_bad_requests(address: str, change: dict[str, Any], status: int, named: str):
    request = {"model": "counting", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **change}
    answered, body = post(address, "/v1/chat/completions", json.dumps(request).encode())
    assert answered == status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert named in body["error"]["message"]
    assert post(address, "/v1/chat/completions", json.dumps({**request, **GOOD}).encode())[0] == 200


GOOD = {
    "model": "counting", "messages": [{"role": "user", "content": "x"}], "temperature": 0, "top_p": 1, "max_tokens": 1,
    "n": 1, "logit_bias": {}, "presence_penalty": 0, "top_logprobs": 1, "seed": 1, "stop": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"model": "counting", "prompt": "\\ud800"}', 400),
        (b'{"model": "counting", "prompt": []}', 400),
        (b'{"model": "counting", "prompt": [99999]}', 400),
        (b'{"model": "counting", "prompt": ""}', 400),
        (b'{"model": "counting", "prompt": "x", "temperature": NaN}', 400),
        (b'{"model": "counting", "prompt": "x", "best_of": 5}', 400),
        (b'{"model": "counting", "prompt": "x", "suffix": "y"}', 400),
    ],
)
def test_malformed_bodies(address: str, body: bytes, status: int):
    answered, told_back = post(address, "/v1/completions", body)
    assert (answered, "error" in told_back) == (status, True)
    assert urllib.request.urlopen(f"{address}/health").status == 200


def test_a_body_that_is_too_large_is_not_read(address: str):
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Length", str(17 << 20))
    connection.endheaders(b"{")
    response = connection.getresponse()
    assert response.status == 413
    assert "16 MiB" in json.loads(response.read())["error"]["message"]
    connection.close()


def test_unknown_places(address: str):
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{address}/v1/nothing")
    assert raised.value.code == 404
    assert json.loads(raised.value.read())["error"]["type"] == "not_found_error"


def test_api_key(start: Callable[..., str]):
    address = start(api_key="secret")
    with client_of(address, api_key="wrong") as client, pytest.raises(openai.AuthenticationError, match="API key"):
        client.models.list()
    with client_of(address, api_key="secret") as client:
        assert len(client.models.list().data) == 1
    assert urllib.request.urlopen(f"{address}/health").status == 200


def test_two_models_in_one_server(start: Callable[..., str], artifact: Path, tmp_path: Path):
    """Texts of both at once; each has its own name, and they share threads."""
    other = Path(shutil.copy(artifact, tmp_path / "other.smc"))
    with client_of(start(artifact, other, threads=2)) as client:
        assert [model.id for model in client.models.list()] == ["counting", "other"]

        def text(model: str, prompt: list[int]) -> tuple[str, str]:
            answer = client.completions.create(model=model, prompt=prompt, max_tokens=20)
            return answer.model, answer.choices[0].text

        asked = [(name, prompt) for prompt in prompts_without({EOS, SLOW}, 4, 20) for name in ("counting", "other")]
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(lambda each: text(*each), asked))
        assert answers == [(name, decoded(prompt, counting_text(prompt, 20))) for name, prompt in asked]


def test_a_full_queue_is_told(start: Callable[..., str]):
    address = start(limits=Limits(running=1, waiting=1), sequences=3)
    with client_of(address) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> str:
            try:
                client.completions.create(model="counting", prompt=[SLOW, 20], max_tokens=2)
            except openai.RateLimitError as error:
                return f"refused for {error.response.headers['retry-after']} s"
            return "answered"

        answers = list(pool.map(ask, range(6)))
    assert {"answered", "refused for 1 s"} == set(answers)


def test_a_client_that_goes_frees_its_place(start: Callable[..., str]):
    address = start(limits=Limits(running=1, waiting=4), sequences=3)
    [prompt] = prompts_without({EOS, SLOW}, 1, 150)
    with client_of(address) as client:
        stream = client.completions.create(model="counting", prompt=prompt, max_tokens=150, stream=True)
        next(iter(stream))
        stream.close()
        answer = client.completions.create(model="counting", prompt=prompt, max_tokens=3)
        assert answer.choices[0].text == decoded(prompt, counting_text(prompt, 3))
    metrics = urllib.request.urlopen(f"{address}/metrics").read().decode()
    assert 'smc_running_texts{model="counting"} 0.0' in metrics


def test_metrics(client: openai.OpenAI, address: str):
    client.completions.create(model="counting", prompt=[20, 21], max_tokens=4)
    text = urllib.request.urlopen(f"{address}/metrics").read().decode()
    for name in ("smc_requests_total", "smc_tokens_total", "smc_first_token_seconds_bucket", "smc_kv_cache_bytes"):
        assert name in text
    assert 'smc_requests_total{path="/v1/completions",status="200"}' in text


def post(address: str, path: str, body: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(address + path, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
