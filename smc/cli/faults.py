"""Which errors are no bugs of ours: what the system refused, and what a user's own pass does wrong."""

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
"""Where the system's own words would not do."""


def explain(error: BaseException) -> str | None:
    """The sentence for an error that is not ours; None for a bug.

    What failed decides: a refusal of the system is one whatever was refused, unless the call was wrong in itself.
    """
    if isinstance(error, InputError):
        return str(error)
    if sentence := _in_a_users_pass(error):
        return sentence
    if type(error).__name__ == "PanicException":  # of the tokenizer library, on a tokenizer that it should have refused
        return f"the model's tokenizer is broken ({error})"
    if isinstance(error, MemoryError):
        return _SENTENCES[errno.ENOMEM]
    if isinstance(error, OSError) and error.errno is not None:
        return _system_error(error)
    if isinstance(error, subprocess.CalledProcessError):
        said = f"{error.stderr or ''}"
        reason = child_refused(error.returncode, said)
        return f"{os.path.basename(str(error.cmd[0]))} failed: {reason}" if reason else None
    if isinstance(error, (OSError, RuntimeError, ImportError, SystemError)):  # of libraries, which have words only
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
    registry = sys.modules.get("smc.passes.registry")  # without passes none of them is at fault
    return registry.users_fault(error) if registry else None
