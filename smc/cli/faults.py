"""Tells errors from bugs of smc: refusals of the system, and faults of a user's own pass."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

from smc.errors import WRONG_CALLS, InputError, child_refused, refused

_SENTENCES = {
    errno.ENOSPC: "there is not enough disk space",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large for this file system or for this user's limit",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EMFILE: "this process may not open so many files: raise `ulimit -n`",
    errno.ENOMEM: "there is not enough memory for this",
}
"""Sentences for error numbers whose own text is unclear."""


def explain(error: BaseException) -> str | None:
    """The sentence for an error that is not a bug of smc; None for a bug.

    A refusal of the system is no bug, whatever was refused, unless the call itself was wrong.
    """
    if isinstance(error, InputError):
        return str(error)
    if sentence := _in_a_users_pass(error):
        return sentence
    if type(error).__name__ == "PanicException":  # the tokenizer library raises it for a broken tokenizer
        return f"the model's tokenizer is broken ({error})"
    if isinstance(error, MemoryError):
        return _SENTENCES[errno.ENOMEM]
    if isinstance(error, OSError) and error.errno is not None:
        return _system_error(error)
    if isinstance(error, subprocess.CalledProcessError):
        said = f"{error.stderr or ''}"
        reason = child_refused(error.returncode, said)
        return f"{os.path.basename(str(error.cmd[0]))} failed: {reason}" if reason else None
    if isinstance(error, (OSError, RuntimeError, ImportError, SystemError)):  # libraries have only words for it
        reason = refused(str(error))
        return None if reason is None else {os.strerror(n): text for n, text in _SENTENCES.items()}.get(reason, reason)
    return None


def _system_error(error: OSError) -> str | None:
    number = error.errno
    assert number is not None
    if not error.filename and number in WRONG_CALLS:
        return None
    if not error.filename and number == errno.ENOENT and not _has_working_folder():
        return "the working directory does not exist any more: change to another"
    where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
    return _SENTENCES.get(number, os.strerror(number)) + where


def _has_working_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _in_a_users_pass(error: BaseException) -> str | None:
    registry = sys.modules.get("smc.passes.registry")  # without passes none can be at fault
    return registry.users_fault(error) if registry else None
