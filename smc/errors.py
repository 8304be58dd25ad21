"""Errors that are no bugs of smc: wrong input, or a refusal of the system; and warnings."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

WRONG_CALLS = frozenset(
    {errno.EBADF, errno.EFAULT, errno.EINVAL, errno.EDOM, errno.ERANGE, errno.ENOTTY, errno.ESRCH, errno.ECHILD}
)
"""Error numbers of calls that are wrong on any machine: they are bugs of smc."""

NO_MEMORY = (
    "bad_alloc",
    "out of memory",
    "OutOfMemory",
    "can't allocate memory",
    "MemoryError",
    "failed to map segment from shared object",  # the loader says so of a library
    "can't start new thread",  # for lack of memory for the stack
)
"""Words in which programs report ENOMEM."""


class InputError(Exception):
    """Wrong input, in one sentence: what is wrong, where, and what would work.

    The command line prints the sentence and exits with status 2, without a traceback.
    Every other exception is a bug in smc and exits with status 1.
    """


class Notice(UserWarning):
    """One sentence that the user should know although smc continues; for `warnings.warn`.

    The command line prints it to standard error as "note: …", unless -q makes it quiet.
    """


@contextmanager
def blamed_on(what: str) -> Iterator[None]:
    """Turn an exception of a library about its input into an InputError: `what`, and the library's words in brackets.

    Panics of libraries in Rust, which are no Exceptions, count, too. A lack of memory does not: the input may be right.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{what} ({' '.join(str(error).split()) or type(error).__name__})") from None


def refused(text: str) -> str | None:
    """What the system refused a library or a child process, from its words; None if they do not say it."""
    if any(words in text for words in NO_MEMORY):
        return os.strerror(errno.ENOMEM)
    sentences = (os.strerror(number) for number in errno.errorcode if number not in WRONG_CALLS)
    return next((sentence for sentence in sentences if sentence in text), None)


def memory_is_limited() -> bool:
    """Whether the user limits the memory of processes; libraries fail in many ways when they get none."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def child_refused(status: int, text: str) -> str | None:
    """The reason why a child process ended with `status` (negative: a signal), as the end of a sentence."""
    if said := refused(text):
        return said
    if status in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGILL):  # a bug, or a lack of memory
        return "it crashed, probably for lack of memory, which `ulimit -v` limits" if memory_is_limited() else None
    if status == -signal.SIGKILL:
        return "it was killed, probably because memory ran out"
    return f"it was ended by signal {-status} ({signal.strsignal(-status)})" if status < 0 else None
