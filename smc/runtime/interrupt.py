"""Ctrl-C while the engine runs: Python's own handler would wait until the step has ended."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from smc.runtime.binding import CancelledError


@contextmanager
def on_interrupt(cancel: Callable[[], None]) -> Iterator[None]:
    """Within this context SIGINT calls `cancel` at once, from another thread; KeyboardInterrupt follows as usual.

    If the `CancelledError` of the step comes first, it becomes a KeyboardInterrupt.
    The interpreter's C-level signal handler writes the signal's number to a socket, on which a thread waits: that works
    while the main thread is in the engine. In other threads, where Python handles no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)  # set_wakeup_fd needs it

    def watch() -> None:
        while signals := reader.recv(64):
            if signal.SIGINT in signals:
                cancel()

    watcher = threading.Thread(target=watch, name="smc-interrupt", daemon=True)
    watcher.start()
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    except CancelledError:
        raise KeyboardInterrupt from None
    finally:
        signal.set_wakeup_fd(previous)
        writer.close()
        watcher.join()
        reader.close()
