"""A server in a thread of the tests, with the counting program behind it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from smc.serve.app import ServerOptions, make_app, open_models
from smc.serve.scheduler import Limits
from tests.runtime.conftest import artifact, build_program, program

__all__ = ["artifact", "build_program", "program"]


@contextmanager
def serving(*artifacts: Path, **options: Any) -> Iterator[str]:
    """A running server; its address."""
    server_options = ServerOptions(**{"threads": 1, **options})
    config = uvicorn.Config(
        make_app(open_models(artifacts, server_options), server_options),
        port=0,
        log_level="error",
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def client_of(address: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60, **options})


@pytest.fixture(scope="module")
def address(artifact: Path) -> Iterator[str]:
    with serving(artifact, limits=Limits(running=4, waiting=40), sequences=9) as place:
        yield place


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with client_of(address) as made:
        yield made


@pytest.fixture
def start(artifact: Path) -> Iterator[Callable[..., str]]:
    """Starts further servers, with options."""
    running = []

    def begin(*artifacts: Path, **options: Any) -> str:
        manager = serving(*(artifacts or (artifact,)), **options)
        running.append(manager)
        return manager.__enter__()

    yield begin
    for manager in running:
        manager.__exit__(None, None, None)
