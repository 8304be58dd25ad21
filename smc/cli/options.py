"""Options that several commands share: how to open an artifact, how to choose tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from smc.errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])


def utf8_text(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """A callback for parameters that are text, one or several; bytes that are no UTF-8 come as surrogates."""
    for text in value if isinstance(value, tuple) else (value or "",):
        check_utf8(parameter.opts[0] if parameter.param_type_name == "option" else f"the {parameter.name}", text)
    return value


def check_utf8(what: str, text: str) -> None:
    """Raise InputError where the text is not what UTF-8 can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} is not UTF-8 text") from None


artifact_argument = click.argument("artifact", type=click.Path(path_type=Path))

_MODEL = [
    click.option(
        "--ctx",
        "context_length",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Context length in tokens; by default as the model was trained.",
    ),
    click.option(
        "-t",
        "--threads",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Threads; by default one for each (fast) CPU that it may use.",
    ),
    click.option(
        "--kv-dtype", type=click.Choice(["f16", "f32", "i8"]), default="f16", show_default=True, help="Of the KV cache."
    ),
    click.option("--level", metavar="NAME", help="Force a feature level of the artifact."),
]

_SAMPLING = [
    click.option(
        "-n",
        "--max-tokens",
        type=click.IntRange(0),
        metavar="N",
        help="Most tokens to generate; by default until the model ends or the context is full.",
    ),
    click.option("--temperature", type=float, metavar="T", help="0 is greedy."),
    click.option("--top-k", type=int, metavar="K", help="Only the K likeliest tokens; 0 is all."),
    click.option("--top-p", type=float, metavar="P", help="Only the likeliest tokens that make up P."),
    click.option("--min-p", type=float, metavar="P", help="Only tokens P times as likely as the likeliest."),
    click.option("--repetition-penalty", type=float, metavar="X", help="Above 1: repeat less."),
    click.option("--seed", type=int, metavar="N", help="The same seed gives the same text."),
    click.option(
        "--stop", multiple=True, metavar="TEXT", callback=utf8_text, help="End before this text; may be given again."
    ),
]


def model_options(command: Command) -> Command:
    """--ctx, --threads, --kv-dtype and --level: keywords of `smc.runtime.load`."""
    return _decorate(command, _MODEL)


def sampling_options(command: Command) -> Command:
    """-n, --temperature … --stop: keywords of `Model.stream`."""
    return _decorate(command, _SAMPLING)


def _decorate(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """As if the options stood above the command in this order."""
    for option in reversed(options):
        command = option(command)
    return command
