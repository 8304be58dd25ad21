"""`smc chat`: a conversation with a model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smc.cli import messages
from smc.cli.cached import cached_artifact
from smc.cli.draft import draft_option, drafter_of
from smc.cli.function_calls import ToolUse, functions_option
from smc.cli.options import (
    check_utf8,
    model_argument,
    model_options,
    sampling_options,
    utf8_text,
    verbosity_options,
)
from smc.cli.run import describe_model
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.runtime.conversation import Conversation
    from smc.runtime.speculation import Drafter

COMMANDS = {
    "/system TEXT": "start again with a system message; without TEXT, without one",
    "/reset": "start again with the same system message",
    "/retry": "generate another answer to the last message",
    "/save FILE": "write the conversation to a file",
    "/load FILE": "continue a saved conversation",
    "/help": "show this help",
    "/bye": "leave, like /exit and Ctrl-D",
}

HELP = "/help shows commands, Ctrl-D leaves, Ctrl-C stops an answer."


@click.command()
@model_argument
@click.option("--system", metavar="TEXT", callback=utf8_text, help="A system message before the conversation.")
@functions_option
@sampling_options
@model_options
@draft_option
@verbosity_options
def chat(
    model_path: str,
    system: str | None,
    functions_file: Path | None,
    context_length: int,
    threads: int,
    kv_dtype: str,
    level: str | None,
    draft: str | None,
    **options: Any,
) -> None:
    """Talk with MODEL: an artifact, or a checkpoint, which is compiled into a cache the first time.

    /help shows the commands: /system, /reset, /retry, /save, /load, /bye. Ctrl-C stops an answer, Ctrl-D leaves. On a
    terminal pasted lines are one message, Alt-Enter makes a line break, and answers are shown as Markdown; elsewhere
    every line is a message. When the conversation outgrows the context, smc drops its oldest turns and says so.
    With --functions, calls are lines of JSON; models with function tokens answer each message alone, with calls.

    \b
    Example:
      smc chat smollm2.smc --system "Answer in one sentence." --temperature 0.7
    """
    from smc.runtime import load

    functions = None
    if functions_file is not None:
        from smc.structured.functions import read_functions

        functions = read_functions(functions_file)
    artifact = cached_artifact(model_path)
    with load(artifact, context_length=context_length, threads=threads, kv_dtype=kv_dtype, level=level) as model:
        tools = None if functions is None else ToolUse(model, functions)
        if tools is not None and tools.by_tokens:
            tools.answer_all(_prompt_reader() if sys.stdin.isatty() else _read_line, options.get("max_tokens"))
            return
        if not model.has_chat_template:
            raise InputError(f"{artifact} has no chat template: continue plain text with smc run {artifact} PROMPT")
        from smc.runtime.conversation import Conversation

        terminal = sys.stdin.isatty()
        if terminal:
            facts = f"{model.threads} threads, context {model.context_length}"
            messages.note(f"{model.artifact.manifest.name}, {facts}. {HELP}")
        describe_model(model)
        form = {} if tools is None else {"form": tools.prompt}
        conversation = Conversation(model, system, options.get("max_tokens") or 0, **form)
        try:
            Chat(conversation, options, terminal, drafter_of(draft, model), tools).run()
        finally:
            conversation.close()


class Chat:
    """Reads lines, runs commands, shows answers.

    draft: makes a drafter for every answer, or None. tools: functions that answers may call.
    """

    def __init__(
        self,
        conversation: Conversation,
        options: dict[str, Any],
        terminal: bool,
        draft: Callable[[], Drafter | None] = lambda: None,
        tools: ToolUse | None = None,
    ) -> None:
        self._tools = tools
        self._conversation = conversation
        self._options = options
        self._terminal = terminal
        self._draft = draft
        self._read = _prompt_reader() if terminal else _read_line
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._system,
            "/reset": lambda rest: conversation.reset(),
            "/retry": lambda rest: self._answer(conversation.take_back()),
            "/save": lambda rest: conversation.save(_file(rest, "/save")),
            "/load": self._load,
            "/help": lambda rest: _show_help(),
        }

    def run(self) -> None:
        """Run until the user leaves. On a terminal, errors of commands and messages are shown and the chat
        continues."""
        while (line := self._read()) is not None:
            word, _, rest = line.partition(" ")
            if word in ("/bye", "/exit"):
                return
            try:
                if word.startswith("/") and "/" not in word[1:] and "\n" not in word:
                    self._command(word, rest.strip())
                elif line:
                    self._answer(line)
            except InputError as error:
                if not self._terminal:
                    raise
                messages.complain(str(error))

    def _command(self, word: str, rest: str) -> None:
        if word not in self._commands:
            names = ", ".join([*self._commands, "/bye"])
            raise InputError(
                f"there is no command {word}: use one of {names}, or begin a message with a space to send it"
            )
        self._commands[word](rest)

    def _system(self, text: str) -> None:
        self._conversation.reset()
        self._conversation.system = text or None

    def _load(self, name: str) -> None:
        self._conversation.load(_file(name, "/load"))
        messages.note(f"(loaded {len(self._conversation.messages) // 2} turns)")

    def _answer(self, question: str) -> None:
        """Show the model's answer while it is generated, until its end or Ctrl-C."""
        from smc.cli.answers import show_plain, show_stream
        from smc.runtime.interrupt import on_interrupt

        conversation, before = self._conversation, self._conversation.forgotten
        drafter = self._draft()
        special = {"show_special": True} if self._tools is not None else {}
        stream = conversation.ask(question, {**self._options, **special, "drafter": drafter})
        if (turns := conversation.forgotten - before) > 0:
            messages.note(f"(the context is full: the {turns} oldest turn{'s' * (turns > 1)} dropped)")
        show = show_stream if self._terminal and sys.stdout.isatty() else show_plain
        try:
            with on_interrupt(conversation.model.engine.cancel):
                show(stream if self._tools is None else self._tools.shown(stream))
        except KeyboardInterrupt:
            click.echo(" …")
        if drafter is not None:
            drafter.close()
        result = stream.result
        conversation.add(question, result.text)
        if self._tools is not None:
            self._tools.print_calls(result.text)
        if result.finish_reason == "length" and conversation.used >= conversation.model.context_length:
            messages.note("(the answer is incomplete: the context is full)")
        if self._terminal:
            speed, context = result.timings.decode_tokens_per_second, conversation.model.context_length
            used = f"{conversation.used} of {context} tokens of context"
            messages.note(click.style(f"{len(result.tokens)} tokens, {speed:.1f} tokens/s, {used}", dim=True))


def _file(name: str, command: str) -> Path:
    if not name:
        raise InputError(f"{command} needs the name of a file: {command} FILE")
    return Path(name).expanduser()


def _show_help() -> None:
    for command, meaning in COMMANDS.items():
        click.echo(f"{command:14} {meaning}", err=True)


def _read_line() -> str | None:
    """The next line of a stream; None at its end."""
    try:
        line = input().strip()
    except EOFError:
        return None
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8 text") from None
    check_utf8("standard input", line)
    return line


def _prompt_reader() -> Callable[[], str | None]:
    """Reads messages on a terminal: with history and editing; Alt-Enter and pasted lines make a message of several
    lines."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory(), key_bindings=keys, multiline=True, prompt_continuation="… "
    )

    def read() -> str | None:
        while True:
            try:
                return session.prompt("> ").strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                messages.note(HELP)

    return read
