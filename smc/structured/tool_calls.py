"""How models write calls of tools: the forms of the common chat templates, their grammars, and parsing them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smc.structured.functions import Function
from smc.structured.grammar import JSON_FORM, Grammar

Form = Literal["hermes", "mistral", "llama"]


@dataclass(frozen=True)
class ToolCall:
    """A call. arguments: a JSON object."""

    name: str
    arguments: dict[str, Any]

    def as_openai(self, index: int | None = None) -> dict[str, Any]:
        """The call in OpenAI's form; index: its number, in the events of a stream."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}
        head = {} if index is None else {"index": index}
        return {**head, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def form_of(template: str) -> Form:
    """The form of calls in a chat template: Hermes's tags (Qwen, SmolLM, …) if the template has none."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" not in template and ("<|python_tag|>" in template or '"parameters"' in template):
        return "llama"
    return "hermes"


def knows_tools(template: str) -> bool:
    """Whether a chat template describes tools to the model."""
    return re.search(r"\btools\b", template) is not None


def tools_message(functions: Sequence[Function]) -> str:
    """A system message that describes tools in Hermes's form, for templates that do not."""
    lines = "\n".join(json.dumps(function.as_tool(), ensure_ascii=False) for function in functions)
    return (
        "You may call one or more functions to help with the user's request. These are the functions:\n"
        f"<tools>\n{lines}\n</tools>\n"
        "For each call write a JSON object with the function's name and its arguments within tags:\n"
        '<tool_call>\n{"name": NAME, "arguments": {…}}\n</tool_call>'
    )


def calls_grammar(functions: Sequence[Function], form: Form, tokens: frozenset[str], parallel: bool) -> Grammar:
    """A grammar of one call, or (parallel) of several. tokens: the texts of the model's special and added tokens."""

    def literal(text: str) -> str:
        return text if text in tokens else json.dumps(text)

    name = "parameters" if form == "llama" else "arguments"
    # Without x-guidance JSON in a grammar may have white space without end.
    calls = {"x-guidance": JSON_FORM, "anyOf": [_call_schema(function, name) for function in functions]}
    if form == "mistral":
        most = {} if parallel else {"maxItems": 1}
        several = {"type": "array", "items": calls, "minItems": 1, "x-guidance": JSON_FORM, **most}
        return Grammar("lark", f"start: {literal('[TOOL_CALLS]')} calls\ncalls: %json {json.dumps(several)}\n")
    if form == "llama":
        return Grammar.of_schema(calls)
    one = f'{literal("<tool_call>")} "\\n" call "\\n" {literal("</tool_call>")}'
    start = 'one ("\\n" one)*' if parallel else "one"
    return Grammar("lark", f"start: {start}\none: {one}\ncall: %json {json.dumps(calls)}\n")


def _call_schema(function: Function, name: str) -> dict[str, Any]:
    parameters = dict(function.parameters)
    parameters.setdefault("type", "object")
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, name: parameters},
        "required": ["name", name],
        "additionalProperties": False,
    }


_HERMES = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)


def parse_calls(text: str, form: Form, functions: Sequence[Function]) -> tuple[str, list[ToolCall]]:
    """The text without calls, and the calls of known functions in it; an invalid call stays text."""
    names = {function.name for function in functions}
    if form == "hermes":
        calls: list[ToolCall] = []

        def take(match: re.Match[str]) -> str:
            found = _calls(match[1], names)
            calls.extend(found)
            return "" if found else match[0]

        return _HERMES.sub(take, text).strip() if "<tool_call>" in text else text, calls
    body = text.strip()
    before = ""
    if form == "mistral":
        before, mark, body = body.partition("[TOOL_CALLS]")
        if not mark:
            return text, []
    found = _calls(body.strip().removeprefix("<|python_tag|>"), names)
    return (before.strip(), found) if found else (text, [])


def _calls(text: str, names: set[str]) -> list[ToolCall]:
    """The calls in a JSON value, an object or a list of objects; none if one of them is invalid."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict) or item.get("name") not in names:
            return []
        arguments = item.get("arguments", item.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                return []
        if not isinstance(arguments, dict):
            return []
        calls.append(ToolCall(item["name"], arguments))
    return calls
