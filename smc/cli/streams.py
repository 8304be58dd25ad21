"""The standard streams of the process, which may be closed."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

OUTPUT = "standard output"
"""The name of the file in errors of writing to it."""


class _Output(io.FileIO):
    """Standard output, whose errors name it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = OUTPUT
            raise


class _LastResort(io.FileIO):
    """Standard error; text that can't be written there is lost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def repair_streams() -> None:
    """Make closed standard input and error usable, name errors of standard output, and ignore those of standard error.

    No file that is opened later gets the number of a standard stream. Closed output stays None.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, flags), number)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (until the process ends)
    if sys.stdout is not None:
        sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout.encoding, sys.stdout.errors or "strict")
    encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
    sys.stderr = _text(_LastResort(2, "w", closefd=False), encoding, "backslashreplace")


def _text(file: io.FileIO, encoding: str, errors: str) -> io.TextIOWrapper:
    line_buffering = file.fileno() == 2 or file.isatty()
    return io.TextIOWrapper(io.BufferedWriter(file), encoding, errors, line_buffering=line_buffering)


def drop_output() -> None:
    """Send the rest of standard output nowhere, so that the end of the process does not fail, too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
