"""The standard streams of the process, whatever state they come in."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _LastResort(io.FileIO):
    """Standard error: what can't be written there is lost, for there is no other place to tell that."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def repair_streams() -> None:
    """Make standard input and error usable where they are closed, and an error that can't be written harmless.

    No file that is opened later gets the number of a standard stream.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, flags), number)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (until the process ends)
    encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_LastResort(2, "w", closefd=False)), encoding, "backslashreplace", line_buffering=True
    )


def flush_output() -> OSError | None:
    """Write what standard output holds back; the error where it can't be written, which then counts as told."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes when the process ends
        return error
    except ValueError:  # closed
        return None
    return None
