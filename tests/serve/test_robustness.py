"""Clients that are many, slow or gone, and forms of answers that would take for ever: the server stays up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from smc.serve import app
from smc.serve.scheduler import Limits
from tests.runtime.conftest import SLOW
from tests.serve.conftest import client_of, serving
from tests.serve.test_openai import EOS, post, prompts_without


@pytest.fixture(scope="module")
def many(artifact: Path) -> Iterator[str]:
    """A server with little room."""
    with serving(artifact, limits=Limits(running=4, waiting=40), sequences=9, context_length=3000) as place:
        yield place


def answers(address: str) -> bool:
    """Whether the server still gives an answer, soon."""
    body = {"model": "counting", "prompt": [20, 40, 30], "max_tokens": 2}
    started = time.perf_counter()
    status, _ = post(address, "/v1/completions", json.dumps(body).encode())
    return status == 200 and time.perf_counter() - started < 20


def metrics_of(address: str) -> str:
    return urllib.request.urlopen(f"{address}/metrics").read().decode()


def wait_until_idle(address: str) -> None:
    for _ in range(200):
        text = metrics_of(address)
        idle = all(f'{name}{{model="counting"}} 0.0' in text for name in ("smc_running_texts", "smc_waiting_texts"))
        if idle:
            return
        time.sleep(0.05)
    raise AssertionError(f"texts still run: {text}")


def test_thousands_of_connections(many: str):
    """Some say nothing, some begin a request: none of it hinders others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2000
    if hard < 2 * wanted + 500:
        pytest.skip("this process may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * wanted + 500), hard))
    host, port = many.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        for number in range(wanted):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            if number % 3 == 1:
                connection.sendall(b"POST /v1/comple")
            elif number % 3 == 2:
                connection.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"mod')
        assert answers(many)
    assert answers(many)


def test_a_body_that_does_not_come(many: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "BODY_SECONDS", 0.3)
    host, port = many.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 50\r\n\r\n"
        connection.sendall(head + b'{"mod')
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408") and b"did not come in time" in answer


def test_slow_bodies_are_read(many: str):
    body = json.dumps({"model": "counting", "prompt": [20, 40, 30], "max_tokens": 2}).encode()
    host, port = many.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode())
        for byte in body:
            connection.sendall(bytes([byte]))
            time.sleep(0.005)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_vanish(many: str, stream: bool):
    """Hundreds go in the middle of their texts: these end, and others are answered."""
    [prompt] = prompts_without({EOS, SLOW}, 1, 120)
    body = {"model": "counting", "prompt": prompt, "max_tokens": 2000, "stream": stream, "logit_bias": {"257": -100}}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    host, port = many.removeprefix("http://").split(":")

    async def vanish(number: int) -> None:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + data)
        await writer.drain()
        await asyncio.sleep(0.01 * (number % 20))
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(vanish(number) for number in range(300)))

    asyncio.run(all_of_them())
    wait_until_idle(many)
    assert answers(many)


def test_a_reader_that_does_not_read(many: str):
    """Its text ends all the same, and waits in the socket."""
    host, port = many.removeprefix("http://").split(":")
    body = {"model": "counting", "prompt": [20, 40, 30], "max_tokens": 2900, "stream": True}
    data = json.dumps({**body, "logit_bias": {"257": -100}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(head + data)
        assert answers(many)
        wait_until_idle(many)
    assert answers(many)


# ---- forms of answers


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a"]}
    return schema


EXPONENTIAL = {
    "references that double": {
        "$defs": {f"d{i}": {"type": "object", "properties": {"l": {"$ref": f"#/$defs/d{i + 1}"},
                                                            "r": {"$ref": f"#/$defs/d{i + 1}"}}}
                  for i in range(40)} | {"d40": {"type": "boolean"}},
        "$ref": "#/$defs/d0",
    },
    "a reference to itself": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "recursive without end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"],
                              "additionalProperties": False},
    "nested objects": nested(12),
    "very deep": {"type": "array", "items": {"$ref": "#"}, "minItems": 3},
    "many alternatives": {"anyOf": [{"anyOf": [{"const": f"{i} {j}"} for j in range(40)]} for i in range(40)]},
    "all of any of": {"allOf": [{"anyOf": [{"type": "object", "properties": {f"p{i}{j}": {"type": "integer"}}}
                                           for j in range(6)]} for i in range(12)]},
    "a long pattern": {"type": "string", "pattern": "^((a|b|ab){1,50}){1,50}$"},
    "a pattern of patterns": {"type": "string", "pattern": "(x+x+)+y" * 30},
    "long strings": {"type": "string", "minLength": 100_000, "maxLength": 200_000},
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 1000, "maxItems": 100_000},
    "nothing fits": {"type": "integer", "minimum": 5, "maximum": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_schemas_that_could_take_for_ever(many: str, name: str):
    """They are refused, or followed as far as max_tokens; meanwhile and afterwards others are served."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": EXPONENTIAL[name]}}
    body = {"model": "counting", "messages": [{"role": "user", "content": "x"}], "max_tokens": 30}
    started = time.perf_counter()
    status, answer = post(many, "/v1/chat/completions", json.dumps({**body, "response_format": form}).encode())
    assert status in (200, 400)
    if status == 200 and answer["choices"][0]["finish_reason"] == "stop":
        json.loads(answer["choices"][0]["message"]["content"])
    assert answers(many)
    assert time.perf_counter() - started < 60


def test_a_form_that_takes_long_stops_no_other(start: Callable[..., str]):
    """While a grammar is prepared, texts go on."""
    address = start(limits=Limits(running=4, waiting=40), sequences=9, context_length=3000)
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": EXPONENTIAL["a long pattern"]}}
    with client_of(address) as client, contextlib.suppress(openai.BadRequestError):
        client.chat.completions.create(
            model="counting", messages=[{"role": "user", "content": "x"}], max_tokens=3, response_format=form
        )
    assert answers(address)
