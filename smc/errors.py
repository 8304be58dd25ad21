"""What is not our bug: the user's input is wrong, or the system refused something; and a warning for what may go on."""

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
"""What the system says of a call that can't be right anywhere: a bug of the caller's, no trouble of the machine's."""

NO_MEMORY = (
    "bad_alloc",
    "out of memory",
    "OutOfMemory",
    "can't allocate memory",
    "MemoryError",
    "failed to map segment from shared object",  # the loader, of a library
    "can't start new thread",  # whose stack finds no place
)
"""How programs say ENOMEM in words of their own."""


class InputError(Exception):
    """Wrong input, in one sentence: what is wrong, where, and what would work.

    The command line prints the sentence and exits with status 2, without a traceback.
    Every other exception is a bug of ours and exits with status 1.
    """


class Notice(UserWarning):
    """What the user should know though nothing has to stop, in one sentence; for `warnings.warn`.

    The command line prints it to standard error as "note: …", unless -q makes it quiet.
    """


@contextmanager
def blamed_on(what: str) -> Iterator[None]:
    """Tell what a library raises about its input as an InputError: `what`, and the library's words in brackets.

    The panics of libraries in Rust count, which are no Exceptions. Memory that ran out is nobody's damage.
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
    """What the system refused a library or a child process, by what it said about it; None where it says nothing."""
    if any(words in text for words in NO_MEMORY):
        return os.strerror(errno.ENOMEM)
    sentences = (os.strerror(number) for number in errno.errorcode if number not in WRONG_CALLS)
    return next((sentence for sentence in sentences if sentence in text), None)


def memory_is_limited() -> bool:
    """Whether the user limits the memory of processes: libraries that get none fail in ways of their own."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def child_refused(status: int, text: str) -> str | None:
    """The same of a child process that ended with `status` (negative: a signal), the end of a sentence."""
    if said := refused(text):
        return said
    if status in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGILL):  # its own fault, or it could not say it any more
        return "it crashed, probably for want of memory, which `ulimit -v` limits" if memory_is_limited() else None
    if status == -signal.SIGKILL:
        return "it was killed, probably because memory ran out"
    return f"it was ended by signal {-status} ({signal.strsignal(-status)})" if status < 0 else None
