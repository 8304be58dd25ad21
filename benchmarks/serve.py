"""How many tokens per second `smc serve` gives: beside the engine alone, the scheduler without HTTP, and llama.cpp.

    python -m benchmarks.serve smollm2.smc --clients 1,4,16,64
    python -m benchmarks.serve smollm2.smc --clients 4,16 --peer SmolLM2-135M-Instruct.Q4_0.gguf
    python -m benchmarks.serve smollm2.smc --soak 10

Every client requests one text after the other, of `--tokens` tokens after a prompt of about 20; the texts are greedy.
The load generator is a small asyncio program in a process of its own. `alone` is `Model.generate`, one sequence;
`scheduler` is the batching scheduler fed from this process; `http` is the server without streaming, `streamed` with it.
`shared_prompt` is the time to the first token of texts that begin with the same 1,000 tokens or so, the first and the
later ones. With --peer llama.cpp's server, which is built first, runs the same loads, turn by turn. --soak loads the
server for so many minutes with 16 clients, and shows how its memory grew and whether a request failed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serve_load import PROMPT, Plan
from benchmarks.servers import Server, llama_cpp_server, smc_server
from smc.runtime import Model
from smc.runtime.generation import Generation
from smc.serve.scheduler import Event, Limits, Scheduler, Text

SHARED_WORDS = 222
"""Of a shared prompt: "word 1 word 2 …", 4 to 5 tokens each: 1,000 tokens of SmolLM2."""

SOAK_CLIENTS = 16
WARM_UP = 0.2
"""Part of a soak after which memory counts: caches are full by then."""

numbers = iter(range(10_000, 1 << 40, 10_000))
"""Where the prompts of every load begin: no prompt is requested twice."""


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


def over_http(servers: Sequence[Server], clients: Sequence[int], tokens: int, texts: int, rounds: int) -> Any:
    """What each server gives, without streaming and with it: the rounds' medians. The servers take turns."""
    found: dict[str, dict[str, dict[str, list[dict[str, float]]]]] = {}
    for turn in range(rounds):
        for count in clients:
            for kind in ("http", "streamed"):
                for server in servers if turn % 2 == 0 else reversed(servers):
                    streams = kind == "streamed"
                    plan = Plan(server.port, server.model, count, tokens, count * texts, 0.0, streams, next(numbers))
                    by_count = found.setdefault(server.name, {}).setdefault(kind, {})
                    by_count.setdefault(str(count), []).append(plan.run())
    return {
        name: {
            kind: {
                count: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
                for count, runs in counts.items()
            }
            for kind, counts in kinds.items()
        }
        for name, kinds in found.items()
    }


def shared_prompt(server: Server, tokens: int, texts: int = 9) -> dict[str, float]:
    """Seconds to the first token: of the first text, and the median of later ones with the same beginning."""
    first, *later = (
        Plan(server.port, server.model, 1, tokens, 1, 0.0, True, next(numbers), SHARED_WORDS).run()["first_token_s_p50"]
        for _ in range(texts)
    )
    second = statistics.median(later)
    return {"first_s": first, "later_s": second, "part": second / first}


def soak(server: Server, minutes: float, tokens: int) -> dict[str, Any]:
    """Load for so long; memory is measured ten times per minute, or more often in a short run."""
    memory: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(min(6.0, minutes * 60 / 50)):
            memory.append(server.resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    plan = Plan(server.port, server.model, SOAK_CLIENTS, tokens, 0, minutes * 60, True, next(numbers))
    result = plan.run()
    over.set()
    watcher.join()
    warm = memory[int(len(memory) * WARM_UP) :]
    part = max(1, len(warm) // 5)
    begin, end = statistics.median(warm[:part]), statistics.median(warm[-part:])
    return {**result, "memory_mib": [begin, end], "growth": end / begin - 1}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=3, help="of each client")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer", type=Path, metavar="GGUF", help="for llama.cpp's server, beside ours")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="only load it for so long")
    options = parser.parse_args()
    clients = [int(text) for text in options.clients.split(",")]
    threads = ("--threads", str(options.threads))
    if options.soak is not None:
        with smc_server(options.artifact, SOAK_CLIENTS, *threads) as server:
            print(json.dumps(soak(server, options.soak, options.tokens), indent=1))
        return
    with Model(options.artifact, sequences=max(clients) + 2, threads=options.threads) as model:
        alone(model, 16, 2)  # weights are read for the first time
        result: dict[str, Any] = {"alone": alone(model, options.tokens, options.texts)}
        result["scheduler"] = {
            str(count): scheduled(model, count, options.tokens, count * options.texts) for count in clients
        }
    with smc_server(options.artifact, max(clients), *threads) as ours:
        result["shared_prompt"] = {"smc": shared_prompt(ours, 8)}
        if options.peer is None:
            result |= over_http([ours], clients, options.tokens, options.texts, options.rounds)
        else:
            with llama_cpp_server(options.peer, max(clients), options.threads, 2048) as theirs:
                result["shared_prompt"]["llama.cpp"] = shared_prompt(theirs, 8)
                result |= over_http([ours, theirs], clients, options.tokens, options.texts, options.rounds)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
