"""Writing outputs: first beside the output, in a folder of known name; complete files then get their names."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from smc.codegen.artifact import is_artifact
from smc.errors import InputError

NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Errors of file systems that can't lock folders (NFS), which are ignored."""


def output_file(out: Path, inputs: Iterable[Path] = ()) -> Path:
    """The file that writing `out` makes or replaces: where a symbolic link leads.

    inputs: what it's made from, files, or folders with all files in them, artifacts excepted.
    Raises InputError for an output that is not a regular file, can't be written, or belongs to the inputs.
    """
    try:
        target = out.resolve()
        parent = target.parent
        if out.is_dir():
            raise InputError(f"the output {out} is a folder: name a file, such as {out / 'model.smc'}")
        if not parent.is_dir():
            named = parent if out.is_symlink() else out.parent
            raise InputError(f"there is no folder {named} to write {target.name} into: create it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"the folder {parent} can't be written: choose another for {out.name}")
        facts = target.stat() if target.exists() else None
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise InputError(f"the output {out} can't be written: {getattr(error, 'strerror', error)}") from None
    if facts is None:
        _check_name(target)
        return target
    if not stat.S_ISREG(facts.st_mode):
        raise InputError(f"the output {out} is not a regular file: name another")
    if not (facts.st_mode & 0o222 and os.access(target, os.W_OK)):
        raise InputError(f"the output {out} is read-only: make it writable (chmod u+w {out}) or name another file")
    for source in inputs:
        if _belongs(target, source):
            raise InputError(f"the output {out} is the model itself or a part of its input: name another file")
    return target


def output_folder(folder: Path) -> Path:
    """A folder for several files, which is not created yet. InputError if it can't be one."""
    try:
        place = existing_part(folder.absolute())
    except OSError as error:
        raise InputError(f"the folder {folder} can't be made: {error.strerror}") from None
    if not place.is_dir():
        raise InputError(f"{place} is not a folder, so {folder} can't be written into: name another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"the folder {place} can't be written: choose another than {folder}")
    return folder


def existing_part(path: Path) -> Path:
    """The nearest of an absolute path and the folders above it that exists. OSError where the path can't exist."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return existing_part(path.parent)
    return path


def _check_name(target: Path) -> None:
    """Find out before the work whether the file system accepts the name."""
    try:
        os.lstat(target)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"the output {target} can't be written: {error.strerror}") from None


def _belongs(target: Path, source: Path) -> bool:
    if not source.is_dir():
        return source.exists() and target.samefile(source)
    files = (path for path in source.iterdir() if path.is_file())
    return any(target.samefile(path) for path in files) and not is_artifact(target)


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside the file `out` for intermediate files; it is removed when the context ends.

    Its name is known, and it is locked: the next process removes what a killed process has left, and two processes
    can't write one output (InputError).
    """
    name = os.fsencode(out.name)
    digest = hashlib.sha256(name).hexdigest()[:8]
    folder = out.absolute().with_name(f".{out.name[:40]}.{digest}.partial")
    handle = _lock(folder)
    if handle is None:
        raise InputError(f"{out} is being written by another process: wait for it or name another file")
    try:
        _empty(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _lock(folder: Path) -> int | None:
    """Make a folder, or take over that of a dead process, and lock it; None if a running process has it."""
    while True:
        try:
            folder.mkdir()
            ours = True
        except FileExistsError:
            ours = False
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # its owner has just removed it
            continue
        try:
            if not ours and os.fstat(handle).st_uid != os.geteuid():
                raise InputError(f"{folder} belongs to another user: remove it first")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            if folder.exists() and os.path.samestat(os.fstat(handle), folder.lstat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _empty(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        else:
            os.unlink(entry)
