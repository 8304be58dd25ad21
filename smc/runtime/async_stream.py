"""A text stream for programs with an event loop: the engine runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smc.runtime.text_stream import TextStream

_END = object()


async def stream_in_thread(make: Callable[[], TextStream]) -> AsyncIterator[str]:
    """The parts of the text of the stream that `make` returns; its exceptions are raised here.

    Leaving early (`aclose`, a cancelled task) ends the text at its next token, and waits for nothing.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[object] = asyncio.Queue()
    left = threading.Event()

    def put(item: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def work() -> None:
        try:
            stream = make()
            for piece in stream:
                if left.is_set():
                    stream.close()
                    return
                put(piece)
            put(_END)
        except BaseException as error:
            put(error)

    threading.Thread(target=work, name="smc-stream", daemon=True).start()
    try:
        while (item := await queue.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            assert isinstance(item, str)
            yield item
    finally:
        left.set()
