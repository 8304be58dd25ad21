"""The HTTP application: endpoints, limits of requests, and what happens at start and end."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smc.distribution import VERSION
from smc.errors import InputError
from smc.runtime import Model
from smc.runtime.drafters import Drafters
from smc.serve.errors import ApiError, answer_error, body_of
from smc.serve.metrics import Metrics
from smc.serve.models import Models
from smc.serve.ollama_api import ollama_router
from smc.serve.openai_api import openai_router
from smc.serve.scheduler import Limits, QueueFullError, StoppingError
from smc.serve.served import ServedModel
from smc.serve.web_page import page_router

MOST_BODY_BYTES = 16 << 20

BODY_SECONDS = 60.0
"""That a client has to send a part of a body; who is slower is refused."""

OPEN_PATHS = {"/health", "/", "/page/chat.js", "/page/style.css"}
"""Paths that need no API key."""


@dataclass(frozen=True)
class ServerOptions:
    """How artifacts are opened and served.

    sequences: the number of sequences in the KV cache: those of running texts, kept prefixes, and one for embeddings
    and log-probabilities of prompts. patience: seconds that running texts may take after the server begins to shut
    down. draft: what guesses tokens (smc/runtime/drafters.py), or None.
    """

    context_length: int = 0
    threads: int = 0
    kv_dtype: str = "f16"
    level: str | None = None
    limits: Limits = field(default_factory=Limits)
    sequences: int = 33
    api_key: str | None = None
    patience: float = 10.0
    draft: str | None = None


@dataclass(frozen=True)
class OpenedModel:
    """An open artifact, and its name for clients."""

    name: str
    path: Path
    model: Model
    drafters: Drafters | None = None


def open_models(artifacts: Sequence[Path], options: ServerOptions) -> list[OpenedModel]:
    """Open all artifacts. InputError, and none is open, if one can't be run or two have the same name."""
    names = [path.stem for path in artifacts]
    if len(set(names)) != len(names):
        raise InputError("two artifacts have the same name: rename one file; a model has the name of its file")
    opened: list[OpenedModel] = []
    try:
        for name, path in zip(names, artifacts, strict=True):
            model = Model(
                path,
                context_length=options.context_length,
                threads=options.threads,
                kv_dtype=options.kv_dtype,
                level=options.level,
                sequences=options.sequences,
            )
            opened.append(OpenedModel(name, path, model))
            if options.draft is not None:
                drafters = Drafters(options.draft, model, options.limits.running)
                opened[-1] = replace(opened[-1], drafters=drafters)
    except BaseException:
        for other in opened:
            other.model.close()
        raise
    return opened


def make_app(opened: Sequence[OpenedModel], options: ServerOptions) -> FastAPI:
    """The application; it closes the models when it ends."""
    models, metrics = Models(), Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            for each in opened:
                served = ServedModel(each.name, each.path, each.model, options.limits, metrics, each.drafters)
                models.add(served)
            yield
        finally:
            for served in models.all():
                served.close(options.patience)

    # FastAPI's own pages would load scripts from other servers.
    app = FastAPI(title="smc serve", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(openai_router(models))
    app.include_router(ollama_router(models))
    app.include_router(page_router())

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    ours = (ApiError, InputError, QueueFullError, StoppingError, RequestValidationError, HTTPException, RecursionError)
    for kind in (*ours, Exception):
        app.add_exception_handler(kind, answer_error)
    app.add_middleware(Gate, api_key=options.api_key, metrics=metrics)
    return app


class TooLargeError(HTTPException):
    """A body of more than MOST_BODY_BYTES."""

    def __init__(self) -> None:
        super().__init__(413, f"the request is larger than {MOST_BODY_BYTES >> 20} MiB: send a shorter one")


class TooSlowError(HTTPException):
    """A body that does not come."""

    def __init__(self) -> None:
        super().__init__(408, "the request's body did not come in time")


class Gate:
    """ASGI middleware: checks the API key, the size of bodies and how long they take, and counts requests."""

    def __init__(self, app: ASGIApp, api_key: str | None, metrics: Metrics) -> None:
        self._app = app
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, received, complete = dict(scope["headers"]), 0, False

        async def counted() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # which says when the client goes
            try:
                message = await asyncio.wait_for(receive(), BODY_SECONDS)
            except asyncio.TimeoutError:
                raise TooSlowError from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > MOST_BODY_BYTES:
                raise TooLargeError
            return message

        json_scope = scope

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = json_scope.get("route")
                self._metrics.count_request(getattr(route, "path", "other"), message["status"])
            await send(message)

        refused = None
        if self._key is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._key):
                refused = ApiError(
                    401, ("the API key is missing or wrong: send the server's --api-key"), code="invalid_api_key"
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MOST_BODY_BYTES:
            refused = ApiError(413, str(TooLargeError().detail))
        if refused is not None:
            await JSONResponse(body_of(refused), status_code=refused.status)(scope, receive, send_counted)
            return
        # Bodies are JSON whatever their content type: curl says that they are forms.
        others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        json_scope = {**scope, "headers": [*others, (b"content-type", b"application/json")]}
        await self._app(json_scope, counted, send_counted)
