"""The required form of a chat's answer: formats, and calls of tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smc.errors import InputError
from smc.runtime import Model
from smc.runtime.streaming import StopStrings
from smc.structured.functions import Function, functions_of_tools
from smc.structured.grammar import Grammar
from smc.structured.response_format import response_grammar
from smc.structured.tool_calls import Form, ToolCall, calls_grammar, form_of, knows_tools, parse_calls, tools_message

_BEGINNINGS = {"hermes": ("<tool_call>",), "mistral": ("[TOOL_CALLS]",), "llama": ("{", "<|python_tag|>")}


@dataclass(frozen=True)
class AnswerForm:
    """How a chat is put to the model and how its answer is read. grammar: None if any text is allowed.

    messages: with the description of the tools, if the template does not write one. variables: for the chat template.
    """

    messages: list[dict[str, Any]]
    variables: dict[str, Any] = field(default_factory=dict)
    grammar: Grammar | None = None
    functions: Sequence[Function] = ()
    form: Form = "hermes"

    def parse(self, text: str) -> tuple[str, list[ToolCall]]:
        """The answer's text and its calls."""
        return parse_calls(text, self.form, self.functions) if self.functions else (text, [])

    def filter(self) -> CallFilter | None:
        """A filter for a stream; None without tools."""
        return CallFilter(self) if self.functions else None


class CallFilter:
    """Lets the text of a stream through until a call begins."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._stops = StopStrings(_BEGINNINGS[form.form])
        self._shown = 0

    def push(self, piece: str) -> str:
        """The text that may be shown now."""
        shown = self._stops.push(piece)
        self._shown += len(shown)
        return shown

    def end(self, text: str) -> tuple[str, list[ToolCall]]:
        """The part of the text that was not shown yet, and the calls of the text."""
        _, calls = self._form.parse(text)
        return ("" if calls else text[self._shown :]), calls


def chat_form(
    model: Model,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    choice: str | dict[str, Any] | None = None,
    wanted: Mapping[str, Any] | None = None,
    parallel: bool = True,
) -> AnswerForm:
    """By OpenAI's `tools`, `tool_choice`, `response_format` (wanted) and `parallel_tool_calls`. InputError as below."""
    grammar = response_grammar(wanted) if wanted is not None else None
    if not tools:
        return plain_form(messages, grammar)
    if grammar is not None:
        raise InputError("response_format: it can't be combined with tools")
    return tools_form(model, messages, tools, choice, parallel)


def plain_form(messages: list[dict[str, Any]], grammar: Grammar | None = None) -> AnswerForm:
    """Without tools."""
    return AnswerForm(_with_objects(messages), grammar=grammar)


def tools_form(
    model: Model,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    choice: str | dict[str, Any] | None = None,
    parallel: bool = True,
) -> AnswerForm:
    """The form with tools and OpenAI's `tool_choice`. Raises InputError if they are wrong."""
    functions = functions_of_tools(tools)
    required = choice == "required"
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        functions = [function for function in functions if function.name == name]
        if not functions:
            raise InputError(f"tool_choice: there is no tool {name!r:.80}")
        required = True
    elif choice not in (None, "auto", "none", "required"):
        raise InputError("tool_choice must be auto, none, required or a function")
    messages = _with_objects(messages)
    if choice == "none":
        return AnswerForm(messages)
    template = model.artifact.chat_template or ""
    form = form_of(template)
    variables: dict[str, Any] = {}
    if knows_tools(template):
        variables["tools"] = [function.as_tool() for function in functions]
    else:
        messages = _told_in_system(messages, tools_message(functions))
    added = frozenset(token.content for token in model.tokenizer.get_added_tokens_decoder().values())
    grammar = calls_grammar(functions, form, added, parallel) if required else None
    return AnswerForm(messages, variables, grammar, functions, form)


def _told_in_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _with_objects(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the arguments of earlier calls as objects, which templates expect, not as JSON text."""
    def call(value: dict[str, Any]) -> dict[str, Any]:
        function = dict(value.get("function") or {})
        if isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"])
            except ValueError:
                raise InputError("messages: the arguments of a tool call must be JSON") from None
        return {**value, "function": function}

    def with_calls(message: dict[str, Any]) -> dict[str, Any]:
        calls = message.get("tool_calls")
        return {**message, "tool_calls": [call(value) for value in calls]} if calls else message

    return [with_calls(message) for message in messages]
