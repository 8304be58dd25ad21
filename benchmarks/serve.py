"""How many tokens per second `smc serve` gives: beside the engine alone, and beside the scheduler without HTTP.

    python -m benchmarks.serve smollm2.smc --clients 1,4,16

Every client requests one text after the other, of `--tokens` tokens after a prompt of about 20; the texts are greedy.
The load generator is a small asyncio program in a process of its own. `alone` is `Model.generate`, one sequence;
`scheduler` is the batching scheduler fed from this process; `http` is the server without streaming, `streamed` with it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from smc.runtime import Model
from smc.runtime.generation import Generation
from smc.serve.scheduler import Event, Limits, Scheduler, Text

PROMPT = "Story number {}: once upon a time there was a small village near the sea where"


def alone(model: Model, tokens: int, texts: int) -> float:
    """Tokens per second of one sequence, prompts included."""
    started, count = time.perf_counter(), 0
    for index in range(texts):
        count += len(model.generate(PROMPT.format(index), max_tokens=tokens, temperature=0.0).tokens)
    return count / (time.perf_counter() - started)


def scheduled(model: Model, clients: int, tokens: int, texts: int) -> float:
    """Tokens per second of so many clients at the scheduler, without HTTP."""
    slots = threading.Semaphore(clients)

    def post(events: list[tuple[Text, Event]]) -> None:
        for _, event in events:
            if event.done:
                slots.release()

    scheduler = Scheduler(model, post, Limits(running=clients))
    options = model.generation_options(max_tokens=tokens, temperature=0.0)
    prompts = [model.encode(PROMPT.format(1000 + index)) for index in range(texts)]
    started, submitted = time.perf_counter(), []
    for prompt in prompts:
        slots.acquire()
        submitted.append(scheduler.submit(Text(Generation(prompt, options, model.tokenizer, model.context_length))))
    for _ in range(clients):
        slots.acquire()
    seconds = time.perf_counter() - started
    scheduler.stop()
    return sum(len(text.result.tokens) for text in submitted) / seconds


async def ask(port: int, body: dict[str, object], times: list[float]) -> int:
    """One completion over a connection of its own; its tokens. times: when each piece of a stream came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    times.append(time.perf_counter())
    writer.write(head.encode() + data)
    answer = b""
    while chunk := await reader.read(65536):
        times.append(time.perf_counter())
        answer += chunk
    writer.close()
    assert b" 200 OK" in answer[:30], answer[:300]
    return int(re.findall(rb'"completion_tokens": ?(\d+)', answer)[-1])


async def load(port: int, name: str, clients: int, tokens: int, texts: int, stream: bool) -> dict[str, float]:
    """Tokens per second over HTTP; of streams also seconds to the first token and between two."""
    waiting = list(range(texts))
    counts: list[int] = []
    times: list[list[float]] = []

    async def client() -> None:
        while waiting:
            prompt = PROMPT.format(5000 + 100_000 * stream + 1000 * clients + waiting.pop())
            body: dict[str, object] = {"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
            if stream:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            times.append([])
            counts.append(await ask(port, body, times[-1]))

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - started
    result = {"tokens_per_s": sum(counts) / seconds}
    if stream:
        first = sorted(t[1] - t[0] for t in times)
        between = sorted(b - a for t in times for a, b in itertools.pairwise(t[1:]))
        for key, values in (("first_token_s", first), ("between_tokens_s", between)):
            result[f"{key}_p50"], result[f"{key}_p99"] = values[len(values) // 2], values[int(len(values) * 0.99)]
    return result


def over_http(artifact: Path, clients: list[int], tokens: int, texts: int) -> dict[str, dict[str, dict[str, float]]]:
    """Starts the server and loads it from another process."""
    command = [sys.executable, "-m", "smc", "serve", str(artifact), "--port", "0", "--parallel", str(max(clients))]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        line = server.stderr.readline()
        found = re.search(r":(\d+) ", line)
        assert found, line
        results: dict[str, dict[str, dict[str, float]]] = {}
        for count in clients:
            for kind in ("http", "streamed"):
                arguments = [found[1], artifact.stem, str(count), str(tokens), str(count * texts), kind]
                program = "import sys; from benchmarks.serve import generate_load; generate_load(*sys.argv[1:])"
                run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=True)
                results.setdefault(kind, {})[str(count)] = json.loads(run.stdout)
        return results
    finally:
        server.terminate()
        server.wait(30)


def generate_load(port: str, name: str, clients: str, tokens: str, texts: str, kind: str) -> None:
    """The load generator: prints its result as JSON."""
    print(json.dumps(asyncio.run(load(int(port), name, int(clients), int(tokens), int(texts), kind == "streamed"))))


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=3, help="of each client")
    options = parser.parse_args()
    clients = [int(text) for text in options.clients.split(",")]
    with Model(options.artifact, sequences=max(clients) + 2) as model:
        alone(model, 16, 2)  # weights are read for the first time
        result: dict[str, object] = {"alone": alone(model, options.tokens, options.texts)}
        result["scheduler"] = {
            str(count): scheduled(model, count, options.tokens, count * options.texts) for count in clients
        }
    result |= over_http(options.artifact, clients, options.tokens, options.texts)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
