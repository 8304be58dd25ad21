"""A model that is served: its scheduler, and the bridge between the scheduler's thread and the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request

from smc.runtime import Model
from smc.runtime.drafters import Drafters
from smc.runtime.generation import Constraint, Generation, GenerationOptions, TokenLogprob
from smc.runtime.token_texts import TokenTexts
from smc.serve.errors import ApiError
from smc.serve.metrics import Metrics
from smc.serve.scheduler import Event, Limits, Scheduler, Text

if TYPE_CHECKING:
    from smc.structured.constraint import Grammars
    from smc.structured.grammar import Grammar


class ServedModel:
    """An artifact under its name. Create it in the event loop that awaits its texts."""

    def __init__(
        self,
        name: str,
        path: Path,
        model: Model,
        limits: Limits,
        metrics: Metrics,
        drafters: Drafters | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self.model = model
        self.created = int(path.stat().st_mtime)
        self.metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._preparing = threading.Lock()
        self._grammars: Grammars | None = None
        self._beside = threading.Lock()  # the scheduler leaves one slot to embeddings and log-probabilities of prompts
        self._drafters = drafters
        self.scheduler = Scheduler(model, self._post, limits, drafters)
        metrics.watch(name, self.scheduler)

    @property
    def texts(self) -> TokenTexts:
        """Texts of its tokens."""
        return TokenTexts(self.model.tokenizer)

    def prepare(
        self, prompt: list[int], options: GenerationOptions, streamed: bool, constraint: Constraint | None = None
    ) -> Text:
        """A text for `submit`. InputError if the prompt does not fit."""
        tokenizer = self.model.tokenizer if self.model.has_tokenizer else None
        generation = Generation(prompt, options, tokenizer, self.model.context_length, constraint)
        return Text(generation, listener=asyncio.Queue(), streamed=streamed)

    def submit(self, texts: Sequence[Text]) -> None:
        """Queue all of these texts or none; texts with max_tokens 0 are done already. Raises as
        `Scheduler.submit_all`."""
        for text in texts:
            if text.generation.done:
                text.listener.put_nowait(Event("", done=True))
        self.scheduler.submit_all([text for text in texts if not text.generation.done])

    async def events(self, text: Text) -> AsyncIterator[Event]:
        """The updates of a text until its end; its exception is raised. Leaving the loop early cancels the text."""
        try:
            while True:
                event: Event = await text.listener.get()
                if event.error is not None:
                    raise event.error
                yield event
                if event.done:
                    return
        finally:
            text.cancel()

    async def finish(self, texts: Sequence[Text], request: Request) -> None:
        """Wait until all texts are complete. If the client disconnects first, they are cancelled and ApiError is
        raised."""

        async def complete(text: Text) -> None:
            async for _ in self.events(text):
                pass

        waiting = [asyncio.ensure_future(complete(text)) for text in texts]
        gone: asyncio.Future[Any] = asyncio.ensure_future(_disconnected(request))
        everything: asyncio.Future[Any] = asyncio.gather(*waiting)
        try:
            await asyncio.wait({everything, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not everything.done():
                raise ApiError(499, "the client has disconnected")
            await everything
        finally:
            gone.cancel()
            everything.cancel()
            for text in texts:
                text.cancel()
            await asyncio.gather(everything, gone, return_exceptions=True)

    async def constraints(self, grammar: Grammar, count: int) -> list[Constraint]:
        """Constraints for `count` texts. InputError for a grammar that can't be used; ApiError without llguidance."""

        def make() -> list[Constraint]:
            with self._preparing:
                if self._grammars is None:
                    try:
                        from smc.structured.constraint import Grammars
                    except ImportError:
                        raise ApiError(
                            501,
                            (
                                "structured answers need the package llguidance, which this server lacks: install "
                                "smc-compiler[serve] there"
                            ),
                        ) from None
                    self._grammars = Grammars(self.model)
            return [self._grammars.constraint(grammar) for _ in range(count)]

        return await asyncio.to_thread(make)

    def embed(self, tokens: list[int]) -> list[float]:
        """The embedding of a text. This blocks, so call it in a thread."""
        with self._beside:
            return self.model.embed(tokens).tolist()

    def prompt_logprobs(self, tokens: list[int], count: int) -> list[TokenLogprob]:
        """As `Model.prompt_logprobs`. This blocks, so call it in a thread."""
        with self._beside:
            return self.model.prompt_logprobs(tokens, count)

    def close(self, patience: float) -> None:
        """Give running texts `patience` seconds to end, then free everything."""
        self.scheduler.stop(patience)
        if self._drafters is not None:
            self._drafters.close()
        self.model.close()

    def _post(self, events: list[tuple[Text, Event]]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, events)
        except RuntimeError:  # the loop is closed: no one waits for updates
            return

    def _deliver(self, events: list[tuple[Text, Event]]) -> None:
        for text, event in events:
            text.listener.put_nowait(event)
            if event.done:
                self.metrics.count_text(self.name, text, event, time.perf_counter())


async def _disconnected(request: Request) -> None:
    """Returns when the client has disconnected; the body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
