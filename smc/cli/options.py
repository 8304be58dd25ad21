"""Options that several commands share: how to open an artifact, how to choose tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from smc.cli import messages
from smc.errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])


def utf8_text(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """A callback for parameters of one or several texts; Python shows bytes that are not UTF-8 as surrogates."""
    for text in value if isinstance(value, tuple) else (value or "",):
        check_utf8(parameter.opts[0] if parameter.param_type_name == "option" else f"the {parameter.name}", text)
    return value


def check_utf8(what: str, text: str) -> None:
    """Raise InputError if UTF-8 can't write the text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} is not UTF-8 text") from None


def _set_level(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """A callback for -q and -v, which is called for both even if none is given. -v wins in any order."""
    levels = context.meta.setdefault("smc.levels", set())
    levels.add((messages.QUIET if parameter.name == "quiet" else messages.VERBOSE) if value else messages.NORMAL)
    messages.set_level(max(levels) if messages.VERBOSE in levels else min(levels))


_VERBOSITY = [
    click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_set_level,
        help="Print only errors and results: no progress, no notes.",
    ),
    click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_set_level,
        help="Print more: what is used and chosen, and where an error came from.",
    ),
]


def verbosity_options(command: Command) -> Command:
    """-q and -v, which every command takes; `smc.cli.messages` obeys them."""
    return _decorate(command, _VERBOSITY)


def complete_target(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The targets whose names begin with this text, for completion in the shell."""
    from smc.targets import TARGETS

    return [name for name in ("native", *TARGETS) if name.startswith(incomplete)]


def count_option(name: str, default: int, letter: str, text: str, *, least: int = 0) -> Callable[[Command], Command]:
    """An option for a whole number of `least` or more; its help shows a letter for it."""
    kind = click.IntRange(least)
    return click.option(name, type=kind, default=default, show_default=True, metavar=letter, help=text)


artifact_argument = click.argument("artifact", type=click.Path(path_type=Path))

model_argument = click.argument("model_path", metavar="MODEL", type=click.Path())
"""An artifact, or a checkpoint, which is compiled into the cache first."""

_MODEL = [
    click.option(
        "--ctx",
        "context_length",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Context length in tokens; by default the one that the model was trained for.",
    ),
    click.option(
        "-t",
        "--threads",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Number of threads; by default one per (fast) CPU that the process may use.",
    ),
    click.option(
        "--kv-dtype",
        type=click.Choice(["f16", "f32", "i8"]),
        default="f16",
        show_default=True,
        help="Number format of the KV cache.",
    ),
    click.option(
        "--level", metavar="NAME", help="CPU feature level to run at; by default the best that this CPU has."
    ),
]

_SAMPLING = [
    click.option(
        "-n",
        "--max-tokens",
        type=click.IntRange(0),
        metavar="N",
        help="Maximum number of tokens; by default until the model ends or the context is full.",
    ),
    click.option("--temperature", type=float, metavar="T", help="Temperature of the sampling; 0 is greedy."),
    click.option("--top-k", type=int, metavar="K", help="Draw only from the K likeliest tokens; 0: from all."),
    click.option(
        "--top-p", type=float, metavar="P", help="Draw only from the likeliest tokens that together have probability P."
    ),
    click.option(
        "--min-p", type=float, metavar="P", help="Draw only from tokens at least P times as likely as the likeliest."
    ),
    click.option(
        "--repetition-penalty", type=float, metavar="X", help="Penalty for tokens that occurred before; 1: none."
    ),
    click.option("--seed", type=int, metavar="N", help="Seed of the sampling: the same seed gives the same text."),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        callback=utf8_text,
        help="Text that ends the answer and is not shown; may be given again.",
    ),
]


def model_options(command: Command) -> Command:
    """--ctx, --threads, --kv-dtype and --level: keywords of `smc.runtime.load`."""
    return _decorate(command, _MODEL)


def sampling_options(command: Command) -> Command:
    """-n, --temperature … --stop: keywords of `Model.stream`."""
    return _decorate(command, _SAMPLING)


def _decorate(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """A decorator that has the effect of these options in this order."""
    for option in reversed(options):
        command = option(command)
    return command
