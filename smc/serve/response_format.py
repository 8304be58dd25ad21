"""OpenAI's `response_format` as a grammar."""

from __future__ import annotations

from typing import Any

from smc.serve.errors import ApiError
from smc.structured.grammar import ANY_JSON, Grammar


def response_grammar(kind: str, value: Any) -> Grammar | None:
    """The grammar of `response_format`. value: the schema, the expression or the grammar. ApiError if it is missing."""
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_JSON
    if value is None:
        raise ApiError(400, f"response_format: {kind} is missing", "response_format")
    if kind == "json_schema":
        schema = value.get("schema")
        if not isinstance(schema, (dict, bool)):
            raise ApiError(400, "response_format: json_schema.schema is missing", "response_format")
        return Grammar.of_schema(schema)
    return Grammar("regex" if kind == "regex" else "lark", value)
