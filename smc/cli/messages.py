"""Messages on standard error, beside results: errors, notes, and details.

-q and -v set for the whole process how much is printed; colours are left out where NO_COLOR is set.
"""

from __future__ import annotations

import codecs
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from smc.errors import Notice

QUIET, NORMAL, VERBOSE = -1, 0, 1

_level = NORMAL


def set_level(level: int) -> None:
    """QUIET: errors only. VERBOSE: details too, and where an error came from."""
    global _level
    _level = level
    if level <= QUIET:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # downloads show their own progress


def is_quiet() -> bool:
    """Print only errors and what was requested."""
    return _level <= QUIET


def is_verbose() -> bool:
    """Whether --verbose was given."""
    return _level >= VERBOSE


def note(text: str) -> None:
    """Print a line, but not with --quiet."""
    if not is_quiet():
        click.echo(text, err=True)


def detail(text: str) -> None:
    """Print a line with --verbose only."""
    if is_verbose():
        click.echo(text, err=True)


def complain(sentence: str) -> None:
    """The sentence of an error."""
    click.echo(f"{click.style('error:', fg='red')} {sentence}", err=True, color=color())


def color() -> bool | None:
    """For click: False if the user wants no colours (no-color.org); None: colours on a terminal."""
    return False if os.environ.get("NO_COLOR") else None


@contextmanager
def notices() -> Iterator[None]:
    """Print every Notice as a sentence; other warnings stay as they are."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, Notice):
                note(f"note: {message}")
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        warnings.simplefilter("always", Notice)
        yield


# ---------------------------------------------------------------- what a stream can't write


def prepare_output() -> None:
    """Let standard output write any text: "?" stands for characters that the locale's encoding lacks; a note says so
    once."""
    stream = sys.stdout
    if not hasattr(stream, "reconfigure"):
        return
    if writes_unicode(stream):
        stream.reconfigure(errors="surrogateescape")  # names of files may have any bytes
        return
    encoding, warned = stream.encoding, False

    def replaced(error: UnicodeError) -> tuple[str, int]:
        nonlocal warned
        if not isinstance(error, UnicodeEncodeError):
            raise error
        if not warned:
            warned = True
            note(f"note: the output is {encoding}, which lacks some characters; they are shown as ?")
        return "?" * (error.end - error.start), error.end

    codecs.register_error("smc.replaced", replaced)
    stream.reconfigure(errors="smc.replaced")


def writes_unicode(stream: TextIO | None = None) -> bool:
    """Whether the stream (standard output) takes every character. click writes UTF-8 where Python would write ASCII."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    return codecs.lookup(encoding).name in ("utf-8", "ascii")
