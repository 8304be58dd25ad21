"""The load generator of `benchmarks.serve`, a small asyncio program in a process of its own.

    python -m benchmarks.serve_load PLAN

PLAN is JSON: the fields of `Plan`. What came of it is printed as JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

PROMPT = "Story number {}: once upon a time there was a small village near the sea where"


@dataclass(frozen=True)
class Plan:
    """Clients that request one text after the other from /v1/completions of a server at `port`.

    texts: of all clients together; 0: until `seconds` are over. tokens: of each text. start: the number of the first
    prompt; no two texts have the same. shared: words before every prompt, the same for all.
    """

    port: int
    model: str
    clients: int
    tokens: int
    texts: int = 0
    seconds: float = 0.0
    stream: bool = False
    start: int = 0
    shared: int = 0

    def run(self) -> dict[str, Any]:
        """Generate the load in another process."""
        command = [sys.executable, "-m", "benchmarks.serve_load", json.dumps(asdict(self))]
        result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return result


@dataclass
class Answer:
    """times: when it was requested, and when each piece of a stream came. tokens: 0 where it failed."""

    times: list[float]
    tokens: int


async def ask(port: int, body: dict[str, Any]) -> Answer:
    """One completion over a connection of its own."""
    answer, received = Answer([time.perf_counter()], 0), b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
        while chunk := await reader.read(65536):
            if b"data: {" in chunk:  # the head of the answer comes before the first token
                answer.times.append(time.perf_counter())
            received += chunk
        writer.close()
    except OSError:
        return answer
    if b" 200 " in received[:30]:
        usage = re.findall(rb'"completion_tokens": ?(\d+)', received)
        answer.tokens = int(usage[-1]) if usage else received.count(b"data: {")
    return answer


async def generate(plan: Plan) -> dict[str, Any]:
    """Tokens per second and failures; of streams also seconds to the first token and between two."""
    numbers = itertools.count(plan.start)
    begin = "".join(f"word {number} " for number in range(plan.shared))
    answers: list[Answer] = []
    started = time.perf_counter()

    async def client() -> None:
        while len(answers) < plan.texts or (not plan.texts and time.perf_counter() < started + plan.seconds):
            place = len(answers)
            answers.append(Answer([], 0))
            body: dict[str, Any] = {
                "model": plan.model, "prompt": begin + PROMPT.format(next(numbers)), "max_tokens": plan.tokens,
                "temperature": 0,
            }  # fmt: skip
            if plan.stream:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            answers[place] = await ask(plan.port, body)

    await asyncio.gather(*(client() for _ in range(plan.clients)))
    seconds = time.perf_counter() - started
    good = [answer for answer in answers if answer.tokens]
    result: dict[str, Any] = {
        "tokens_per_s": sum(answer.tokens for answer in good) / seconds,
        "texts": len(answers),
        "failed": len(answers) - len(good),
    }
    if plan.stream and good:
        first = [answer.times[1] - answer.times[0] for answer in good]
        between = [b - a for answer in good for a, b in itertools.pairwise(answer.times[1:])]
        result |= percentiles("first_token_s", first) | percentiles("between_tokens_s", between)
    return result


def percentiles(name: str, values: list[float]) -> dict[str, float]:
    """The median and the 99th percentile."""
    ordered = sorted(values) or [0.0]
    return {f"{name}_p50": ordered[len(ordered) // 2], f"{name}_p99": ordered[int(len(ordered) * 0.99)]}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(generate(Plan(**json.loads(sys.argv[1]))))))
