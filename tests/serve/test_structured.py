"""Formats of answers and tools, as OpenAI's and Ollama's clients ask for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from tests.serve.conftest import serving
from tests.serve.test_openai import post


@pytest.fixture(scope="module")
def address(artifact: Path) -> Iterator[str]:
    """With room for what a model is told about tools."""
    with serving(artifact, context_length=3000) as place:
        yield place


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "find", "description": "Find it.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
]
MESSAGES: Any = [{"role": "user", "content": "x"}]


def test_json_schema(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model="counting",
        messages=MESSAGES,
        n=3,
        temperature=1.0,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 3
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_regex(client: openai.OpenAI):
    form: Any = {"type": "regex", "regex": r"\d{3}-[a-f]{2}"}
    answer = client.chat.completions.create(model="counting", messages=MESSAGES, response_format=form)
    assert re.fullmatch(r"\d{3}-[a-f]{2}", answer.choices[0].message.content)


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"type": "json_schema", "json_schema": {"schema": {"type": "string", "not": {}}}}, "not"),
        ({"type": "json_schema", "json_schema": {"schema": {"$ref": "#/x"}}}, "JSON schema"),
        ({"type": "json_schema"}, "json_schema is missing"),
        ({"type": "regex", "regex": "("}, "regular expression"),
        ({"type": "xml"}, "response_format"),
    ],
)
def test_formats_that_are_refused(address: str, form: Any, named: str):
    body = {"model": "counting", "messages": MESSAGES, "response_format": form}
    status, answer = post(address, "/v1/chat/completions", json.dumps(body).encode())
    assert status == 400 and named in answer["error"]["message"]


def test_required_tools(client: openai.OpenAI):
    chosen: Any = {"type": "function", "function": {"name": "find"}}
    options: Any = {"model": "counting", "messages": MESSAGES, "tools": TOOLS, "tool_choice": chosen,
                    "parallel_tool_calls": False, "temperature": 1.0, "seed": 4}  # fmt: skip
    answer = client.chat.completions.create(**options)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "find"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    pieces = list(client.chat.completions.create(**options, stream=True))
    [streamed] = [piece.choices[0].delta.tool_calls for piece in pieces if piece.choices[0].delta.tool_calls]
    assert streamed[0].function.arguments == call.function.arguments
    assert not any(piece.choices[0].delta.content for piece in pieces)
    assert pieces[-1].choices[0].finish_reason == "tool_calls"
    # The answer of a tool goes back as a message.
    more = [*MESSAGES, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "{}"}]
    assert client.chat.completions.create(model="counting", messages=more, max_tokens=2).usage.prompt_tokens > 10


def test_free_text_beside_tools(client: openai.OpenAI):
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(
            model="counting", messages=MESSAGES, tools=TOOLS[1:], tool_choice=choice, max_tokens=4
        )
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "there is no tool 'other'"),
        ({"tools": [{"type": "function"}]}, "tools: each is"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "same name"),
        ({"response_format": {"type": "json_object"}}, "can't be combined"),
    ],
)
def test_tools_that_are_refused(address: str, change: Any, named: str):
    body = {"model": "counting", "messages": MESSAGES, "tools": TOOLS, "max_tokens": 1, **change}
    status, answer = post(address, "/v1/chat/completions", json.dumps(body).encode())
    assert status == 400 and named in answer["error"]["message"]


def test_ollamas_format(address: str):
    body = {"model": "counting", "messages": MESSAGES, "format": SCHEMA, "stream": False}
    answer = post(address, "/api/chat", json.dumps(body).encode())[1]
    jsonschema.validate(json.loads(answer["message"]["content"]), SCHEMA)
    status, refused = post(address, "/api/chat", json.dumps({**body, "format": "xml"}).encode())
    assert status == 400 and "format" in refused["error"]
