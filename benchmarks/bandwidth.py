"""How much of the memory's bandwidth decoding reaches: both measured in turns, of one token's weights each.

    python -m benchmarks.bandwidth ARTIFACT [--threads 2] [--decode-tokens 32] [--turns 15] [--json FILE]

What memory gives changes within seconds where other machines share it, so a limit that was measured sooner says little.
Here a read comes before and behind every decoding: threads read as many bytes as a token multiplies, again and again
for about as long, each its own part, and nothing else. The share is of the mean of the two reads beside it. Turns are
listed by what memory gave, the slowest first, with how long a message takes from a CPU to another and back: where it is
much longer than at other times, the CPUs of a virtual machine are on different parts of the chip, with more memory
channels or caches between them, and barriers cost more.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import inputs
from benchmarks.kernels import Memory
from benchmarks.reads import STEP, Reads
from smc.errors import InputError


@dataclass(frozen=True)
class Turn:
    """Bytes/s of the weights that decoding multiplied, and of the reads beside it; seconds between two CPUs and back,
    None for one thread."""

    decode: float
    reads: float
    round_trip: float | None = None

    @property
    def share(self) -> float:
        """What decoding reached of the reads."""
        return self.decode / self.reads


def measure(artifact: Path, threads: int, tokens: int, turns: int) -> list[Turn]:
    """Decode `tokens` tokens and read, in turns, the first of which is for nothing but to wake up."""
    from smc.cli.bench import decode_seconds
    from smc.runtime import load

    reads, found = Reads(), []
    with (
        load(artifact, threads=threads, context_length=tokens + 1) as model,
        model.new_sequence() as text,
        ThreadPoolExecutor(threads) as pool,
    ):
        size = model.engine.info().token_weight_bytes
        memory = Memory(max(size, threads * STEP))

        def read_rate() -> float:
            return size / reads.seconds(pool, threads, memory, size, tokens)

        before = read_rate()
        for _ in range(turns + 1):
            decode = tokens * size / decode_seconds(model, [text], tokens)
            text.truncate(0)
            after = read_rate()
            found.append(Turn(decode, (before + after) / 2, reads.round_trip(pool) if threads > 1 else None))
            before = after
    return found[1:]


def print_table(turns: Sequence[Turn]) -> None:
    """A line a turn, then the medians."""
    click.echo(f"{'GB/s of reads':<16}{'decode':>8}{'share':>9}{'round trip':>14}")
    for turn in sorted(turns, key=lambda turn: turn.reads):
        trip = f"{1e9 * turn.round_trip:>11.0f} ns" if turn.round_trip is not None else ""
        click.echo(f"{turn.reads / 1e9:<16.1f}{turn.decode / 1e9:>8.1f}{turn.share:>9.1%}{trip}")
    click.echo(f"the median share is {statistics.median(turn.share for turn in turns):.1%}")


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
                "share": turn.share,
                "round_trip_seconds": turn.round_trip,
            }
            for turn in found
        ]
        report = {"machine": inputs.machine(), "threads": threads, "decode_tokens": decode_tokens, "turns": figures}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
