"""`smc run --functions`: a question that a model may answer by calling functions."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smc.cli import messages
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.runtime import Model


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
    model: Model, asked: FunctionQuestion, text: str, system: str | None, options: dict[str, Any], as_json: bool
) -> None:
    """Put the question to the model and print the answer: text, and a line of JSON for every call."""
    from smc.structured.functional_tokens import END_TOKEN, call_functions
    from smc.structured.functions import read_functions

    assert asked.file is not None
    functions = read_functions(asked.file)
    if model.tokenizer.token_to_id(END_TOKEN) is not None:
        result = call_functions(model, functions, text)
        said, calls, seconds = "", [call.as_json() for call in result.calls], result.seconds
    else:
        said, calls, seconds = _by_template(model, asked, functions, text, system, options)
    if as_json:
        answer = {"text": said, "calls": calls, "seconds": seconds}
        click.echo(json.dumps(answer, ensure_ascii=not messages.writes_unicode()))
        return
    if said:
        click.echo(said)
    for call in calls:
        click.echo(json.dumps(call, ensure_ascii=not messages.writes_unicode()))


def _by_template(
    model: Model, asked: FunctionQuestion, functions: list[Any], text: str, system: str | None, options: dict[str, Any]
) -> tuple[str, list[dict[str, Any]], float]:
    """The answer's text, its calls, and the seconds that it took."""
    from smc.structured.answer_form import tools_form

    started = time.perf_counter()
    conversation = [{"role": "system", "content": system}] if system is not None else []
    conversation.append({"role": "user", "content": text})
    tools = [function.as_tool() for function in functions]
    form = tools_form(model, conversation, tools, "required" if asked.must_call else "auto")
    constraint = None
    if form.grammar is not None:
        from smc.structured.constraint import Grammars

        constraint = Grammars(model).constraint(form.grammar)
    prompt = model.apply_chat_template(form.messages, **form.variables)
    result = model.generate(prompt, constraint=constraint, show_special=True, **options)
    said, calls = form.parse(result.text)
    answered = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return said, answered, time.perf_counter() - started
