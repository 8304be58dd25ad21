"""`smc run --functions` and `smc chat --functions`: questions that a model may answer by calling functions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smc.cli import messages
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.runtime import Model
    from smc.runtime.text_stream import TextStream
    from smc.structured.answer_form import AnswerForm
    from smc.structured.functions import Function

functions_option = click.option(
    "--functions",
    "functions_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Functions that the model may call: a .py file (signatures, never run) or tools in a .json file.",
)


@dataclass(frozen=True)
class FunctionQuestion:
    """The functions of --functions and --must-call. InputError if the options do not fit together."""

    file: Path | None
    must_call: bool
    raw: bool

    def __post_init__(self) -> None:
        if self.file is None:
            raise InputError("--must-call needs --functions FILE: give a file of functions")
        if self.raw:
            raise InputError("--functions needs the chat template: leave out --raw")


def print_calls(
    model: Model, question: FunctionQuestion, text: str, system: str | None, options: dict[str, Any], as_json: bool
) -> None:
    """Put the question to the model and print the answer: text, and a line of JSON for every call."""
    from smc.structured.functional_tokens import MOST_TOKENS, call_functions, end_token
    from smc.structured.functions import read_functions

    assert question.file is not None
    functions = read_functions(question.file)
    if end_token(model.tokenizer) is not None:
        result = call_functions(model, functions, text, max_tokens=options.get("max_tokens") or MOST_TOKENS)
        said, calls, seconds = "", [call.as_json() for call in result.calls], result.seconds
    else:
        said, calls, seconds = _by_template(model, question, functions, text, system, options)
    if as_json:
        answer = {"text": said, "calls": calls, "seconds": seconds}
        click.echo(json.dumps(answer, ensure_ascii=not messages.writes_unicode()))
        return
    if said:
        click.echo(said)
    _print_lines(calls)


def _print_lines(calls: list[dict[str, Any]]) -> None:
    for call in calls:
        click.echo(json.dumps(call, ensure_ascii=not messages.writes_unicode()))


class ToolUse:
    """Functions that a model may call in a conversation."""

    def __init__(self, model: Model, functions: Sequence[Function]) -> None:
        from smc.structured.functional_tokens import end_token

        self._model = model
        self._functions = functions
        self._form: AnswerForm | None = None
        self.by_tokens = end_token(model.tokenizer) is not None

    def answer_all(self, read: Callable[[], str | None], max_tokens: int | None) -> None:
        """Answer every message alone, by calls with function tokens, until there is none."""
        from smc.structured.functional_tokens import MOST_TOKENS, call_functions

        while (query := read()) is not None:
            if query:
                result = call_functions(self._model, self._functions, query, max_tokens=max_tokens or MOST_TOKENS)
                _print_lines([call.as_json() for call in result.calls])

    def prompt(self, conversation: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What the chat template is given: messages and variables."""
        from smc.structured.answer_form import tools_form

        self._form = tools_form(self._model, conversation, [function.as_tool() for function in self._functions])
        return self._form.messages, self._form.variables

    def shown(self, stream: TextStream) -> Iterator[str]:
        """The pieces of an answer, without its calls."""
        assert self._form is not None, "a prompt comes before its answer"
        calls = self._form.filter()
        assert calls is not None
        for piece in stream:
            yield calls.push(piece)
        yield calls.end(stream.result.text)[0]

    def print_calls(self, text: str) -> None:
        """The calls in an answer, a line of JSON each."""
        assert self._form is not None, "a prompt comes before its answer"
        calls = self._form.parse(text)[1]
        _print_lines([{"name": call.name, "arguments": call.arguments} for call in calls])


def _by_template(
    model: Model,
    question: FunctionQuestion,
    functions: list[Any],
    text: str,
    system: str | None,
    options: dict[str, Any],
) -> tuple[str, list[dict[str, Any]], float]:
    """The answer's text, its calls, and the seconds that it took."""
    from smc.structured.answer_form import tools_form

    started = time.perf_counter()
    conversation = [{"role": "system", "content": system}] if system is not None else []
    conversation.append({"role": "user", "content": text})
    tools = [function.as_tool() for function in functions]
    form = tools_form(model, conversation, tools, "required" if question.must_call else "auto")
    constraint = None
    if form.grammar is not None:
        from smc.structured.constraint import Grammars

        constraint = Grammars(model).constraint(form.grammar)
    prompt = model.apply_chat_template(form.messages, **form.variables)
    result = model.generate(prompt, constraint=constraint, show_special=True, **options)
    said, calls = form.parse(result.text)
    answered = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return said, answered, time.perf_counter() - started
