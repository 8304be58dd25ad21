"""`smc chat`: a conversation with an artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smc.cli import messages
from smc.cli.options import (
    artifact_argument,
    check_utf8,
    model_options,
    sampling_options,
    utf8_text,
    verbosity_options,
)
from smc.cli.run import describe_model
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.runtime import Model, Sequence

HELP = "/reset starts anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer."

Messages = list[dict[str, str]]


@click.command()
@artifact_argument
@click.option("--system", metavar="TEXT", callback=utf8_text, help="A system message before the conversation.")
@sampling_options
@model_options
@verbosity_options
def chat(
    artifact: Path,
    system: str | None,
    context_length: int,
    threads: int,
    kv_dtype: str,
    level: str | None,
    **options: Any,
) -> None:
    """Talk with the model in ARTIFACT, line by line.

    /reset starts anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer. Where the conversation outgrows the context, its
    oldest messages are forgotten.

    \b
    Example:
      smc chat smollm2.smc --system "Answer in one sentence." --temperature 0.7
    """
    from smc.runtime import load

    with load(artifact, context_length=context_length, threads=threads, kv_dtype=kv_dtype, level=level) as model:
        if not model.has_chat_template:
            raise InputError(f"{artifact} has no chat template; continue plain text with: smc run {artifact} PROMPT")
        first: Messages = [{"role": "system", "content": system}] if system is not None else []
        terminal = sys.stdin.isatty()
        if terminal:
            import readline  # noqa: F401  (line editing and history for input())

            facts = f"{model.threads} threads, context {model.context_length}"
            messages.note(f"{model.artifact.manifest.name}, {facts}. {HELP}")
        describe_model(model)
        history = list(first)
        with model.new_sequence() as sequence:
            while (line := _read_line(terminal)) not in (None, "/exit"):
                if line == "/reset":
                    history = list(first)
                elif line:
                    history.append({"role": "user", "content": line})
                    history.append({"role": "assistant", "content": _answer(model, sequence, history, options)})


def _read_line(terminal: bool) -> str | None:
    """The user's next line; None at the end of the input. Ctrl-C forgets what was typed."""
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            if terminal:
                click.echo()
            return None
        except KeyboardInterrupt:
            if not terminal:
                raise
            click.echo(f"\n{HELP}", err=True)
        except UnicodeDecodeError:
            raise InputError("standard input is not UTF-8 text") from None
        else:
            check_utf8("standard input", line)
            return line


def _answer(model: Model, sequence: Sequence, history: Messages, options: dict[str, Any]) -> str:
    """Print the model's answer while it comes and return it, complete or as far as Ctrl-C let it come.

    Only what the sequence does not hold already is run: the user's last message.
    """
    from smc.runtime.interrupt import on_interrupt

    stream = model.stream(_fitting_prompt(model, history), sequence=sequence, **options)
    try:
        with on_interrupt(model.engine.cancel):
            for piece in stream:
                click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    click.echo()
    if stream.result.finish_reason == "length" and sequence.length >= model.context_length:
        messages.note("(the context is full; /reset starts anew)")
    return stream.result.text


def _fitting_prompt(model: Model, history: Messages) -> list[int]:
    """The conversation as tokens; where it leaves no room for an answer, its oldest exchanges are removed for good."""
    forgotten = 0
    while True:
        prompt = model.apply_chat_template(history)
        oldest = 1 if history[0]["role"] == "system" else 0
        if len(prompt) < model.context_length or len(history) - oldest <= 1:
            break
        del history[oldest : oldest + 2]  # a question and its answer
        forgotten += 2
    if forgotten:
        messages.note(f"(the context is full: the {forgotten} oldest messages are forgotten)")
    return prompt
