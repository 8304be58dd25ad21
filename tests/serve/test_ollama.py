"""Ollama's endpoints, as its clients speak them."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from tests.runtime.conftest import byte_tokenizer, counting_text
from tests.serve.test_openai import EOS, SLOW, decoded, post, prompts_without, told


def lines(address: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """A streamed answer; without a content type, as curl sends it."""
    request = urllib.request.Request(address + path, data=json.dumps(body).encode())
    with urllib.request.urlopen(request) as response:
        assert response.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in response]


def get(address: str, path: str) -> Any:
    return json.loads(urllib.request.urlopen(address + path).read())


def test_generate(address: str):
    [prompt] = prompts_without({EOS, SLOW}, 1, 9)
    text = byte_tokenizer().decode(prompt)
    assert told(text) == prompt
    request = {"model": "counting:latest", "prompt": text, "raw": True, "options": {"num_predict": 9}}
    whole = post(address, "/api/generate", json.dumps({**request, "stream": False}).encode())[1]
    assert whole["response"] == decoded(prompt, counting_text(prompt, 9))
    assert (whole["prompt_eval_count"], whole["eval_count"], whole["done_reason"]) == (3, 9, "length")
    assert whole["context"] == prompt + counting_text(prompt, 9)
    streamed = lines(address, "/api/generate", request)
    assert "".join(line["response"] for line in streamed) == whole["response"]
    assert [line["done"] for line in streamed] == [False] * (len(streamed) - 1) + [True]
    more = {**request, "prompt": "", "context": whole["context"], "options": {"num_predict": 2}, "stream": False}
    assert post(address, "/api/generate", json.dumps(more).encode())[1]["context"] == prompt + counting_text(prompt, 11)


def test_chat(address: str):
    request = {"model": "counting", "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 5}}
    streamed = lines(address, "/api/chat", request)
    prompt = [256, *told("hi"), 257, *told("\n"), 258]
    assert "".join(line["message"]["content"] for line in streamed) == decoded(prompt, counting_text(prompt, 5))
    assert streamed[-1]["done"] and streamed[-1]["eval_count"] == 5


def test_about_models(address: str):
    assert [model["name"] for model in get(address, "/api/tags")["models"]] == ["counting"]
    assert get(address, "/api/version")["version"]
    status, shown = post(address, "/api/show", b'{"model": "counting"}')
    assert status == 200 and "<user>" in shown["template"]


def test_embed(address: str):
    answer = post(address, "/api/embed", b'{"model": "counting", "input": ["a", "b"]}')[1]
    assert [len(vector) for vector in answer["embeddings"]] == [len(answer["embeddings"][0])] * 2
    assert answer["prompt_eval_count"] == 2


def test_errors_are_in_ollamas_form(address: str):
    assert post(address, "/api/chat", b'{"model": "other"}') == (
        404, {"error": "there is no model 'other': this server has counting"}
    )  # fmt: skip
    assert post(address, "/api/generate", b"{")[0] == 400
    assert post(address, "/api/generate", b'{"model": "counting", "prompt": "x", "options": {"top_p": 7}}')[0] == 400
