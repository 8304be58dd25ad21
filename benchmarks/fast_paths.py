"""What each fast path of the schedule gains: a program with all of them beside programs that lack one.

    python -m benchmarks.fast_paths MODEL [NAME...] [--quant int4-plain] [--threads 2] [--rounds 60]

MODEL is what `smc compile` takes; without names all fast paths are measured. Rounds are short, and there are many. In
each both programs read a prompt of 128 tokens, of which only the last one's logits are requested, and decode 6 tokens
greedily; which one comes first alternates. The table says how many times as fast the program with all fast paths is,
the median of the rounds with their quartiles. Two columns do not depend on the machine: the barriers of a step that
decodes one token, and the megabytes of activations, of the program without the path.
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
from smc.codegen.backends import find_backend
from smc.codegen.plan.planner import make_plan
from smc.codegen.schedule.fast_paths import FAST_PATHS
from smc.codegen.schedule.memory import plan_memory
from smc.codegen.schedule.schedule import Condition
from smc.ir import Module
from smc.passes import FUSIONS, apply, load_recipe
from smc.runtime import Model
from smc.targets import find_target

PROMPT, DECODE = 128, 6


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
        low, median, high = statistics.quantiles((b / a for a, b in zip(own, other, strict=True)), n=4)
        cells.append(f"{median:.3f} ({low:.2f} – {high:.2f})")
    return cells


def facts(module: Module, without: tuple[str, ...]) -> list[str]:
    """The barriers of a step of one token, whose cache is not split, and the megabytes of activations."""
    schedule = find_backend(find_target("native")).schedule(make_plan(module), without)
    skipped = {Condition.MANY_TOKENS, Condition.NOT_JOINED, Condition.SPLIT_CACHE}
    phases = [phase for function, _ in schedule.plan.order for phase in schedule.of(function).phases]
    return [
        str(sum(phase.condition not in skipped for phase in phases)),
        f"{plan_memory(schedule).arena_bytes / 1e6:.1f}",
    ]


@click.command(help=__doc__)
@click.argument("model")
@click.argument("names", nargs=-1, type=click.Choice(list(FAST_PATHS)))
@click.option("--quant", default="int4-plain", show_default=True, help="The recipe to compile with.")
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--rounds", default=60, show_default=True)
def main(model: str, names: tuple[str, ...], quant: str, threads: int, rounds: int) -> None:
    """Compile, measure and print the table."""
    module = smc.apply(smc.load_checkpoint(model), load_recipe(quant).passes)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:

        def compiled(without: tuple[str, ...]) -> Model:
            path = Path(folder) / f"{'-'.join(without)}.smc"
            smc.compile(module, out=path, without=without)
            return opened.enter_context(smc.load(path, threads=threads, context_length=PROMPT + DECODE + 8))

        with_all, fused = compiled(()), apply(module, FUSIONS)
        click.echo(f"{'times as fast':<16}{f'prefill {PROMPT}':>24}{f'decode {DECODE}':>24}{'barriers':>10}{'MB':>8}")
        barriers, megabytes = facts(fused, ())
        click.echo(f"{'with all':<16}{'':>24}{'':>24}{barriers:>10}{megabytes:>8}")
        for name in names or FAST_PATHS:
            cells = gains(with_all, compiled((name,)), rounds)
            barriers, megabytes = facts(fused, (name,))
            click.echo(f"{name:<16}{cells[0]:>24}{cells[1]:>24}{barriers:>10}{megabytes:>8}")


if __name__ == "__main__":
    main()
