"""OpenAI's `response_format` as a grammar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smc.errors import InputError
from smc.structured.grammar import ANY_JSON, Grammar

_VALUES = {"json_schema": "json_schema", "regex": "regex", "grammar": "grammar"}


def response_grammar(wanted: Mapping[str, Any]) -> Grammar | None:
    """Of a `response_format`; None for plain text. InputError where it is none, or lacks something.

    Beside OpenAI's forms there are {"type": "regex", "regex": …} and {"type": "grammar", "grammar": …}, and
    llama-cpp-python's {"type": "json_object", "schema": …}.
    """
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = wanted.get("schema")
        return ANY_JSON if schema is None else _of_schema(schema, "schema")
    if kind not in _VALUES:
        raise InputError(f"response_format: its type is text, json_object, {', '.join(_VALUES)}, not {kind!r:.40}")
    value = wanted.get(kind)
    if value is None:
        raise InputError(f"response_format: {kind} is missing")
    if kind == "json_schema":
        return _of_schema(value.get("schema") if isinstance(value, Mapping) else None, "json_schema.schema")
    if not isinstance(value, str):
        raise InputError(f"response_format: {kind} is a text")
    return Grammar("regex" if kind == "regex" else "lark", value)


def _of_schema(schema: Any, name: str) -> Grammar:
    if not isinstance(schema, (dict, bool)):
        raise InputError(f"response_format: {name} is missing")
    return Grammar.of_schema(schema)
