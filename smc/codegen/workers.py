"""Worker processes for work that may abort the process it runs in.

multiprocessing is not used, because its workers import the caller's script again: a script without `if __name__ ==
"__main__"` would start again in every worker.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, Pipe, wait
from typing import IO, Any

from smc.errors import InputError, child_refused, memory_is_limited, refused

_LAST_WORDS = 4000
"""Bytes of a dead worker's last output that are kept."""


class WorkerDiedError(Exception):
    """A worker ended in the middle of a job: `job` is its place in the list.

    refusal: what the system refused it, as the end of a sentence; None if it failed by itself.
    """

    def __init__(self, job: int, status: int, said: str) -> None:
        super().__init__(f"a worker ended with status {status}" + (f":\n{said}" if said else ""))
        self.job, self.refusal = job, child_refused(status, said)


def run_in_workers(
    function: Callable[..., None],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    spare: list[Worker] | None = None,
) -> Iterator[int]:
    """Call function(*job) for every job in so many processes; yields the place of every job that is done.

    function: of a module, with arguments that can be pickled; paths among them must be absolute.
    spare: idle workers of this function, which are taken first; workers that are idle in the end join them. Without it
    workers end with this generator.
    Raises WorkerDiedError, the function's InputError, OSError or MemoryError, or RuntimeError with the traceback of
    anything else. What workers print is shown where they die, and nowhere else.
    """
    with ExitStack() as stack:
        idle = [stack.enter_context(_lent(function, spare)) for _ in range(min(workers, len(jobs)))]
        busy: dict[Connection, tuple[Worker, int]] = {}
        waiting = iter(range(len(jobs)))
        for _ in jobs:
            while idle and (place := next(waiting, None)) is not None:
                worker = idle.pop()
                busy[worker.connection] = worker, place
                worker.send(place, jobs[place])
            connection = next(c for c in wait(list(busy)) if isinstance(c, Connection))
            worker, place = busy.pop(connection)
            worker.finish(place)
            idle.append(worker)
            yield place


@contextmanager
def _lent(function: Callable[..., None], spare: list[Worker] | None) -> Iterator[Worker]:
    worker = spare.pop() if spare else Worker(function)
    if worker.process.poll() is not None:  # it ended while nobody looked
        worker.close()
        worker = Worker(function)
    try:
        yield worker
    finally:
        if spare is None or worker.busy:
            worker.close()
        else:
            spare.append(worker)


class Worker:
    """A process that calls one function for job after job."""

    def __init__(self, function: Callable[..., None]) -> None:
        """Start it."""
        self.busy = False
        self._said = _nameless_file()
        self.connection, theirs = Pipe()
        call = f"{function.__module__!r}, {function.__name__!r}, {theirs.fileno()}"
        # In "/" the empty entry that `-c` puts into sys.path finds nothing. A session of its own: Ctrl-C is for the
        # caller, who ends the workers; without a caller they end at the end of their pipe.
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from smc.codegen.workers import serve; serve({call})"],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        """End it."""
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self._said.close()

    def send(self, place: int, job: tuple[Any, ...]) -> None:
        """Give it a job, whose place in the list an error names."""
        self.busy = True
        try:
            self.connection.send(job)
        except BrokenPipeError:
            raise self._death(place) from None

    def finish(self, place: int) -> None:
        """Take the answer to the job sent last."""
        try:
            fault = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._death(place) from None
        self.busy = False
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            reason = refused(last := fault.strip().rpartition("\n")[2])
            if reason is None and memory_is_limited():
                reason = f"probably for lack of memory, which `ulimit -v` limits ({last})"
            if reason is not None:
                raise InputError(f"a worker process failed: {reason}")
            raise RuntimeError(f"in a worker process:\n{fault}")

    def _death(self, place: int) -> WorkerDiedError:
        status = self.process.wait()
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - _LAST_WORDS))
        return WorkerDiedError(place, status, self._said.read().decode("utf-8", "replace").strip())


def _nameless_file() -> IO[bytes]:
    """In memory if the system can do that: a full disk may be what a worker has to report."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("smc-worker"), "w+b")
    return tempfile.TemporaryFile()


def serve(module: str, function: str, file: int) -> None:
    """The loop of a worker: it reads jobs from the pipe `file` and answers None or the error for each."""
    import importlib

    call = getattr(importlib.import_module(module), function)
    with Connection(file) as connection:
        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            try:
                call(*job)
                answer: Any = None
            except (InputError, OSError, MemoryError) as error:
                answer = error
            except Exception:
                answer = traceback.format_exc()
            try:
                connection.send(answer)
            except OSError:  # the caller has gone
                return
