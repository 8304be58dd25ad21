"""Servers that are measured: smc's, and llama.cpp's beside it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peer


@dataclass(frozen=True)
class Server:
    """A running server. model: its name for clients."""

    name: str
    model: str
    port: int
    process: int

    def resident_mib(self) -> float:
        """Memory of its process that is not the mapped file's."""
        text = Path(f"/proc/{self.process}/status").read_text(encoding="utf-8")
        found = re.search(r"RssAnon:\s+(\d+) kB", text)
        assert found
        return int(found[1]) / 1024


@contextmanager
def smc_server(artifact: Path, parallel: int, *options: str) -> Iterator[Server]:
    """`smc serve` with room for so many texts at once."""
    arguments = ["serve", str(artifact), "--port", "0", "--parallel", str(parallel), *options]
    process = subprocess.Popen([sys.executable, "-m", "smc", *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r":(\d+) \(process", line)
        if not found:
            raise SystemExit(f"smc serve did not start: {line}")
        yield Server("smc", artifact.stem, int(found[1]), process.pid)
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def llama_cpp_server(gguf: Path, parallel: int, threads: int, context: int) -> Iterator[Server]:
    """llama-server with as many slots, each with a context of so many tokens."""
    program = peer.build(tools=("llama-server",)) / "llama-server"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(program), "-m", str(gguf), "--port", str(port), "-np", str(parallel), "-c", str(parallel * context)]
    process = subprocess.Popen(
        [*command, "-t", str(threads), "-tb", str(threads)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_healthy(port, process)
        yield Server("llama.cpp", gguf.stem, port, process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_healthy(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("llama-server did not start")
