"""`smc serve`: models behind HTTP."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smc.cli import messages
from smc.cli.cached import cached_artifact
from smc.cli.draft import draft_option
from smc.cli.options import model_options, verbosity_options
from smc.cli.signals import orderly_end
from smc.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=click.Path())
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; by default this machine only."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen at; 0: a free one."
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    metavar="N",
    help="Most texts that are generated at once, per model.",
)
@click.option(
    "--cached",
    type=click.IntRange(0, 1024),
    default=16,
    show_default=True,
    metavar="N",
    help="Most ended texts whose keys and values are kept for later requests.",
)
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    metavar="N",
    help="Most texts that wait; further ones get status 429.",
)
@click.option(
    "--kv-memory",
    type=click.IntRange(1),
    metavar="MIB",
    help="Most memory for the KV cache, per model; by default half of the free memory.",
)
@click.option(
    "--api-key",
    envvar="SMC_API_KEY",
    metavar="KEY",
    help="Key that clients must send; by default $SMC_API_KEY, else none.",
)
@model_options
@draft_option
@verbosity_options
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    parallel: int,
    cached: int,
    queue: int,
    kv_memory: int | None,
    api_key: str | None,
    draft: str | None,
    **options: Any,
) -> None:
    """Serve MODELs over HTTP with OpenAI's and Ollama's APIs.

    A MODEL is an artifact, or a checkpoint, which is compiled into a cache the first time. Its name for clients is its
    file's name without the ending. Requests of all clients are batched; a text does not depend on the others. Ctrl-C
    ends the server when the running texts have ended, or after ten seconds.

    \b
    Example:
      smc serve smollm2.smc
      curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}]}'
    """
    from smc.runtime.memory import available_bytes
    from smc.serve.app import ServerOptions, make_app, open_models
    from smc.serve.scheduler import Limits

    artifacts: list[Path] = [cached_artifact(model) for model in models]
    memory = (kv_memory << 20) if kv_memory is not None else available_bytes() // (2 * len(artifacts))
    limits = Limits(running=parallel, waiting=queue, kv_bytes=memory)
    if host not in LOOPBACK and api_key is None:
        messages.note("note: without --api-key everyone who can reach this address can use the server")
    sequences = parallel + cached + 1
    server_options = ServerOptions(limits=limits, sequences=sequences, api_key=api_key, draft=draft, **options)
    with orderly_end(), _listen(host, port) as listener:
        _run(make_app(open_models(artifacts, server_options), server_options), listener)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. InputError if the address can't be used."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"the server can't listen at {host}, port {port}: {error.strerror}") from None


def _run(app: FastAPI, listener: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM, which uvicorn raises again at its end. The address is printed when the server
    listens."""
    import asyncio

    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            messages.note(f"listening on http://{shown}:{port} (process {os.getpid()})")

    level = "info" if messages.is_verbose() else "error" if messages.is_quiet() else "warning"
    config = uvicorn.Config(app, log_level=level, timeout_graceful_shutdown=10, server_header=False)
    asyncio.run(Server(config).serve(sockets=[listener]))
