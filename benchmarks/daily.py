"""What daily use waits for: the prompt of `smc chat`, and the price of a constrained answer.

    python -m benchmarks.daily smollm2.smc

`chat` is the time from the start of the process to its prompt on a terminal, with warm caches. `free` is the speed of
greedy answers, `schema` that of answers that follow a JSON schema, whose names and marks are certain, and `letters` of
answers of letters only, where nothing is certain. They alternate. Reading the prompt does not count, choosing tokens
does.
"""

from __future__ import annotations

import os
import pty
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from smc.runtime import Model, load
from smc.runtime.generation import Constraint
from smc.structured.constraint import Grammars
from smc.structured.grammar import Grammar

PATIENCE = 30.0
"""Seconds that the prompt may take."""

PROMPT_SIGN = b"\x1b[0m>"

PROMPT = "Write a list of five people with name, age and hobbies, as JSON."

_TEXT = {"type": "string", "maxLength": 20}
_PERSON = {"name": _TEXT, "age": {"type": "integer"}, "hobbies": {"type": "array", "items": _TEXT, "maxItems": 4}}
SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {"type": "object", "properties": _PERSON, "required": list(_PERSON), "additionalProperties": False},
    "minItems": 5,
    "maxItems": 5,
}

FORMS = {"free": None, "schema": Grammar.of_schema(SCHEMA), "letters": Grammar("regex", "[A-Za-z ]+")}


def seconds_to_prompt(artifact: Path) -> float:
    """From the start of `smc chat` on a terminal until it shows its prompt."""
    terminal, inside = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    command = [sys.executable, "-m", "smc", "chat", str(artifact)]
    started, shown = time.perf_counter(), b""
    process = subprocess.Popen(
        command, stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True
    )
    os.close(inside)
    try:
        while PROMPT_SIGN not in shown:
            left = started + PATIENCE - time.perf_counter()
            if left <= 0 or not select.select([terminal], [], [], left)[0]:
                raise SystemExit(f"smc chat shows no prompt, but {shown!r}")
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # the process has ended
                raise SystemExit(f"smc chat did not start: {shown.decode(errors='replace')}") from None
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def speed(model: Model, constraint: Constraint | None, tokens: int) -> float:
    """Tokens per second after the prompt, of an answer with at most so many."""
    prompt = model.apply_chat_template([{"role": "user", "content": PROMPT}])
    started = time.perf_counter()
    result = model.generate(prompt, max_tokens=tokens, temperature=0.0, constraint=constraint)
    seconds = time.perf_counter() - started - result.timings.prompt_seconds
    return result.timings.decoded_tokens / seconds


def speeds(model: Model, tokens: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of every round, by the answer's form; the first round is a warm-up and does not count."""
    grammars = Grammars(model)
    found: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(rounds + 1):
        for name, form in FORMS.items():
            found[name].append(speed(model, form and grammars.constraint(form), tokens))
    return {name: rates[1:] for name, rates in found.items()}


@click.command(help=__doc__)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--tokens", default=128, show_default=True, help="Longest answer.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
def main(artifact: Path, tokens: int, rounds: int) -> None:
    """Measure and print."""
    seconds_to_prompt(artifact)
    starts = [seconds_to_prompt(artifact) for _ in range(rounds)]
    click.echo(f"chat     {statistics.median(starts):.2f} s to the prompt ({min(starts):.2f} to {max(starts):.2f})")
    with load(artifact) as model:
        found = speeds(model, tokens, rounds)
    for name, rates in found.items():
        part = statistics.median(rate / free for rate, free in zip(rates, found["free"], strict=True))
        click.echo(f"{name:8} {statistics.median(rates):.1f} tokens/s, {part:.2f}x")


if __name__ == "__main__":
    main()
