"""How much of the memory's bandwidth decoding reaches: both measured alternately, of one token's weights each.

    python -m benchmarks.bandwidth ARTIFACT [--threads 2] [--decode-tokens 32] [--turns 15] [--json FILE]

What memory gives changes within seconds where other machines share it, so a limit that was measured sooner says little.
Here reads come before and behind every decoding: threads read as many bytes as a token multiplies, again and again for
about as long, each its own part, and nothing else. Then they read the same number in the phases of a decoding step,
each after a barrier and a vector from the other threads: what is left is all that no program with these phases does
without. Shares are of the mean of the two reads beside a decoding. Turns are listed by what memory gave, the slowest
first, with how long a message takes from a CPU to another and back: where it is much longer than at other times, the
CPUs of a virtual machine are on different parts of the chip, with more memory channels or caches between them, and
barriers cost more. Medians of turns with such CPUs before and behind ("far") and with others ("near") are shown apart.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks import inputs
from benchmarks.kernels import Memory
from benchmarks.reads import PLACES, STEP, Reads, place
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.runtime.profile import Profile


@dataclass(frozen=True)
class Turn:
    """Bytes/s of the weights that decoding multiplied, of the reads beside it and of those in phases; seconds between
    two CPUs and back, before and behind the turn: none for one thread."""

    decode: float
    reads: float
    phases: float
    round_trips: tuple[float, ...] = ()

    @property
    def share(self) -> float:
        """What decoding reached of the reads."""
        return self.decode / self.reads

    @property
    def phase_share(self) -> float:
        """What decoding reached of the reads in phases."""
        return self.decode / self.phases


def phase_bytes(profile: Profile, token_bytes: int) -> list[int]:
    """Bytes that each phase of a decoding step reads, in order, scaled so that they are `token_bytes` in all.

    A profile also counts activations, which a token's weights outweigh by far.
    """
    found: list[float] = []
    for function in dict.fromkeys(task.function for task in profile.tasks):
        tasks = [task for task in profile.tasks if task.function == function and task.calls]
        phases: list[float] = []
        for task in tasks:
            if task.wait_seconds or not phases:  # only a phase's first task has how long threads waited
                phases.append(0)
            phases[-1] += task.bytes / task.calls
        found += phases * round(max((task.calls for task in tasks), default=0) / profile.steps)
    scale = token_bytes / sum(found)
    return [round(bytes * scale) for bytes in found]


def measure(artifact: Path, threads: int, tokens: int, turns: int) -> list[Turn]:
    """Decode `tokens` tokens and read, alternating; the first turn only wakes the threads."""
    from smc.cli.bench import decode_seconds
    from smc.runtime import load

    reads, found = Reads(), []
    with (
        load(artifact, threads=threads, context_length=tokens + 1) as model,
        model.new_sequence() as text,
        ThreadPoolExecutor(threads) as pool,
    ):
        size = model.engine.facts.token_weight_bytes
        model.engine.profile_start()
        decode_seconds(model, [text], tokens)
        phases = phase_bytes(model.engine.profile_stop(), size)
        text.truncate(0)
        memory = Memory(size + threads * STEP * len(phases))
        width = 4 * model.engine.facts.hidden_size

        def read_rates() -> tuple[float, float]:
            plain = reads.seconds(pool, threads, memory, size, tokens)
            return size / plain, size / reads.step_seconds(pool, threads, memory, phases, width, tokens)

        def look() -> tuple[float, ...]:
            return (reads.round_trip(pool),) if threads > 1 else ()

        before, trips = read_rates(), look()
        for _ in range(turns + 1):
            decode = tokens * size / decode_seconds(model, [text], tokens)
            text.truncate(0)
            after = read_rates()
            plain, in_phases = (sum(pair) / 2 for pair in zip(before, after, strict=True))
            trips = trips[-1:] + look()
            found.append(Turn(decode, plain, in_phases, trips))
            before = after
    return found[1:]


def print_table(turns: Sequence[Turn]) -> None:
    """One line per round, then the medians: of all, and of those before and behind which the CPUs were near, or far."""
    click.echo(f"{'GB/s of reads':<16}in phases  decode  of reads  of phases    round trip")
    for turn in sorted(turns, key=lambda turn: turn.reads):
        trip = f"{1e9 * turn.round_trips[-1]:>11.0f} ns" if turn.round_trips else ""
        click.echo(f"{turn.reads / 1e9:<16.1f}{_cells([turn])}{trip}")
    click.echo("medians")
    for name in ("all", *PLACES):
        some = [turn for turn in turns if name in ("all", place(turn.round_trips))]
        if some:
            reads = statistics.median(turn.reads for turn in some)
            click.echo(f"{f'{reads / 1e9:.1f} ({name})':<16}{_cells(some)}{len(some):>8} turns")


def _cells(turns: Sequence[Turn]) -> str:
    """Medians of what stands behind the reads in a line."""
    phases, decode, share, phase_share = (
        statistics.median(getattr(turn, figure) for turn in turns)
        for figure in ("phases", "decode", "share", "phase_share")
    )
    return f"{phases / 1e9:>9.1f}{decode / 1e9:>8.1f}{share:>10.1%}{phase_share:>11.1%}"


@click.command(help=__doc__)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(1), default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--decode-tokens", type=click.IntRange(1), default=32, show_default=True, help="Of a turn.")
@click.option("--turns", type=click.IntRange(1), default=15, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there too.")
def main(artifact: Path, threads: int, decode_tokens: int, turns: int, json_file: Path | None) -> None:
    """Measure and print the table."""
    try:
        found = measure(artifact, threads, decode_tokens, turns)
    except InputError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{inputs.machine()}; {threads} threads")
    print_table(found)
    if json_file:
        figures = [
            {
                "decode_bytes_per_s": turn.decode,
                "read_bytes_per_s": turn.reads,
                "phase_read_bytes_per_s": turn.phases,
                "share": turn.share,
                "phase_share": turn.phase_share,
                "round_trip_seconds": turn.round_trips,
            }
            for turn in found
        ]
        report = {"machine": inputs.machine(), "threads": threads, "decode_tokens": decode_tokens, "turns": figures}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
