"""What each fast path of the schedule gains: a program with all of them beside programs that lack one.

    python -m benchmarks.fast_paths MODEL [NAME...] [--quant int4-plain] [--threads 2] [--rounds 7]

MODEL is what `smc compile` takes; without names all fast paths are measured. In every round both programs read a prompt
of 128 tokens, of which only the last one's logits are wanted, and decode 32 tokens greedily; which one comes first
alternates. The table says how many times as fast the program with all fast paths is: by the best time that each program
had, for which other work on the machine matters least, and in brackets by the median of the rounds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

import smc
from smc.codegen.schedule.fast_paths import FAST_PATHS
from smc.passes import load_recipe
from smc.runtime import Model

PROMPT, DECODE = 128, 32


def seconds(model: Model) -> tuple[float, float]:
    """How long a prompt takes, and the tokens after it."""
    with model.new_sequence() as sequence:
        prompt = [number % model.vocab_size for number in range(PROMPT)]
        begin = time.perf_counter()
        sequence.extend(prompt)
        middle = time.perf_counter()
        token = 0
        for _ in range(DECODE):
            token = sequence.next_token([token])
        return middle - begin, time.perf_counter() - middle


def gains(with_all: Model, without: Model, rounds: int) -> list[str]:
    """How many times as fast the first one is, at prompts and at decoding."""
    times: dict[Model, list[tuple[float, float]]] = {with_all: [], without: []}
    for model in times:
        seconds(model)  # memory is touched, CPUs are awake
    for number in range(rounds):
        for model in (with_all, without) if number % 2 == 0 else (without, with_all):
            times[model].append(seconds(model))
    cells = []
    for own, other in zip(zip(*times[with_all], strict=True), zip(*times[without], strict=True), strict=True):
        median = statistics.median(b / a for a, b in zip(own, other, strict=True))
        cells.append(f"{min(other) / min(own):.2f} ({median:.2f})")
    return cells


@click.command(help=__doc__)
@click.argument("model")
@click.argument("names", nargs=-1, type=click.Choice(list(FAST_PATHS)))
@click.option("--quant", default="int4-plain", show_default=True, help="The recipe to compile with.")
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--rounds", default=7, show_default=True)
def main(model: str, names: tuple[str, ...], quant: str, threads: int, rounds: int) -> None:
    """Compile, measure and print the table."""
    module = smc.apply(smc.load_checkpoint(model), load_recipe(quant).passes)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:

        def compiled(without: tuple[str, ...]) -> Model:
            path = Path(folder) / f"{'-'.join(without)}.smc"
            smc.compile(module, out=path, without=without)
            return opened.enter_context(smc.load(path, threads=threads, context_length=PROMPT + DECODE + 8))

        with_all = compiled(())
        click.echo(f"{'times as fast':<16}{f'prefill {PROMPT}':>20}{f'decode {DECODE}':>20}")
        for name in names or FAST_PATHS:
            cells = gains(with_all, compiled((name,)), rounds)
            click.echo(f"{name:<16}{cells[0]:>20}{cells[1]:>20}")


if __name__ == "__main__":
    main()
