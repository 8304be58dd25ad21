"""Decides which thread gets the next sequence slot of a model."""

from __future__ import annotations

import threading
from collections import deque

from smc.runtime.binding import CancelledError, ClosedError, Engine, NoSlotError

_LOOK_SECONDS = 0.1
"""Seconds after which a waiting thread looks for cancellations, and for slots that were freed without
`SlotQueue.free`."""


class SlotQueue:
    """Texts of several threads wait for a slot of the engine, first come, first served.

    A text ends by itself and then frees its slot. No thread waits for a slot that was taken for longer
    (`Model.new_sequence`) or that the waiting thread itself has: that could be for ever.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._texts: dict[int, threading.Thread] = {}  # slot → the thread that generates a text there
        self._waiting: deque[object] = deque()

    def take(self, since: int) -> int:
        """A new sequence's slot for a text of this thread.

        since: the value of `Engine.cancels` when the text began; a `cancel` since then ends the waiting. Raises
        NoSlotError if no text of another thread has a slot, `CancelledError`, `ClosedError`.
        """
        if self._engine.forked:
            return (
                self._engine.sequence_create()
            )  # which raises ClosedError; a thread of the parent process may hold the lock
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while (slot := self._try(ticket)) is None:
                    self._changed.wait(_LOOK_SECONDS)
                    if self._engine.cancels != since:
                        raise CancelledError("the text was cancelled while it waited for a sequence slot")
                self._texts[slot] = threading.current_thread()
                return slot
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _try(self, ticket: object) -> int | None:
        """A slot, or None if waiting makes sense."""
        others = self._others()
        if self._waiting[0] is ticket or not others:  # the first in the queue may be waiting for this thread
            try:
                return self._engine.sequence_create()
            except NoSlotError:
                if not others:
                    raise
        return None

    def _others(self) -> bool:
        """Whether another thread's text has a slot."""
        mine = threading.current_thread()
        return any(thread is not mine and thread.is_alive() for thread in list(self._texts.values()))

    def free(self, slot: int) -> None:
        """Drop a sequence of any kind; does nothing if the model was closed or the process is a forked child."""
        if self._engine.forked:
            return
        with self._changed:
            self._texts.pop(slot, None)
            try:
                self._engine.sequence_drop(slot)
            except ClosedError:
                return
            self._changed.notify_all()
