"""Speeds of artifacts beside each other: of two builds, or of one under several levels, threads or KV caches.

\b
    python -m benchmarks.compare before.smc after.smc [--depth 512] [--rounds 15]
    python -m benchmarks.compare smollm2.smc --level avx512vnni --level avx2 --prompt-tokens 0

An artifact holds its kernels and its engine, so what was compiled before a change of either is the build before it.
Every artifact at every --level, --threads and --kv-dtype is a contender. Contenders take turns whose order swaps from
round to round, so that what else the machine does hits all; ratios are to the first contender's speed in the same
round. Each has a process of its own, for models of one process share the first one's threads, and with them the loops
in which those wait. `--json FILE` keeps the figures.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import click

from benchmarks import inputs
from smc.errors import InputError

MEASURES = ("prefill", "decode")


@dataclass(frozen=True)
class Settings:
    """How an artifact is opened; level: None for the CPU's best."""

    artifact: Path
    level: str | None
    threads: int
    kv_dtype: str


@dataclass
class Contender:
    """An artifact under its settings; name: what distinguishes it; tokens/s of every round by measure."""

    name: str
    settings: Settings
    tokens_per_s: dict[str, list[float]] = field(default_factory=lambda: {measure: [] for measure in MEASURES})

    def ratios(self, base: Contender, measure: str) -> list[float]:
        """The speed as a multiple of the base's, round by round."""
        return [own / other for own, other in zip(self.tokens_per_s[measure], base.tokens_per_s[measure], strict=True)]


def contenders(
    artifacts: Sequence[Path], levels: Sequence[str | None], threads: Sequence[int], kv_dtypes: Sequence[str]
) -> list[Contender]:
    """Every artifact with every setting, named by what is not the same for all."""
    found = []
    for artifact, level, count, kv_dtype in itertools.product(artifacts, levels, threads, kv_dtypes):
        parts = [str(artifact)] if len(artifacts) > 1 else []
        parts += [level or "best level"] if len(levels) > 1 else []
        parts += [f"{count} thread{'s' if count > 1 else ''}"] if len(threads) > 1 else []
        parts += [kv_dtype] if len(kv_dtypes) > 1 else []
        found.append(Contender(", ".join(parts) or str(artifact), Settings(artifact, level, count, kv_dtype)))
    return found


def serve(connection: Connection, settings: Settings, depth: int, deepest: int) -> None:
    """What a contender's process does: it answers every (measure, tokens) by tokens/s at that depth, to the end.

    deepest: tokens that the cache must hold. Says None when it is ready; sends the InputError instead of an answer.
    """
    from smc.cli.bench import decode_seconds, fixed_tokens, prefill_seconds
    from smc.runtime import load

    measures = {"prefill": prefill_seconds, "decode": decode_seconds}
    options = {"threads": settings.threads, "kv_dtype": settings.kv_dtype, "level": settings.level}
    try:
        with load(settings.artifact, context_length=deepest, **options) as model, model.new_sequence() as text:
            if depth:
                text.extend(fixed_tokens(model, 0, depth), "none")
            connection.send(None)
            while True:
                measure, tokens = connection.recv()
                decode_seconds(model, [text], 1)  # weights that fit the caches come back, threads wake up
                text.truncate(depth)
                connection.send(tokens / measures[measure](model, [text], tokens))
                text.truncate(depth)
    except InputError as error:
        connection.send(error)
    except (EOFError, BrokenPipeError):  # there are no more turns
        pass


def answer(connection: Connection) -> float | None:
    """What a contender's process sends; its errors are raised."""
    received: float | InputError | None = connection.recv()
    if isinstance(received, InputError):
        raise received
    return received


@contextmanager
def processes(found: Sequence[Contender], depth: int, deepest: int) -> Iterator[list[Connection]]:
    """A connection to the process of every contender, all of them ready; they end with the block."""
    context = multiprocessing.get_context("spawn")  # threads and libraries of this process stay out of it
    connections: list[Connection] = []
    children = []
    try:
        for contender in found:
            ours, theirs = context.Pipe()
            arguments = (theirs, contender.settings, depth, deepest)
            children.append(context.Process(target=serve, args=arguments, daemon=True))
            children[-1].start()
            theirs.close()  # so that a process that dies ends the connection
            connections.append(ours)
            answer(ours)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for child in children:
            child.join()


def run(found: Sequence[Contender], counts: dict[str, int], depth: int, rounds: int) -> None:
    """Fill the contenders with a figure a round for each measure; counts: its tokens, 0 leaves it out."""
    turns = [(measure, count) for measure, count in counts.items() if count]
    with (
        processes(found, depth, depth + max(counts.values()) + 1) as connections,
        click.progressbar(length=rounds * len(turns) * len(found), label="rounds") as progress,
    ):
        pairs = list(zip(found, connections, strict=True))
        for number in range(rounds):
            for turn in turns:
                for contender, connection in pairs if number % 2 == 0 else reversed(pairs):
                    connection.send(turn)
                    speed = answer(connection)
                    assert speed is not None
                    contender.tokens_per_s[turn[0]].append(speed)
                    progress.update(1)


def print_table(found: Sequence[Contender], measure: str, title: str) -> None:
    """One line a contender."""
    width = max(len(title), *(len(contender.name) for contender in found)) + 2
    click.echo(f"{title:<{width}}{'tokens/s':>10}{'ratio':>9}   lowest – highest")
    for contender in found:
        line = f"{contender.name:<{width}}{statistics.median(contender.tokens_per_s[measure]):>10.1f}"
        if contender is not found[0]:
            ratios = contender.ratios(found[0], measure)
            line += f"{statistics.median(ratios):>8.3f}×   {min(ratios):.3f} – {max(ratios):.3f}"
        click.echo(line)


@click.command(help=__doc__)
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--prompt-tokens", type=click.IntRange(0), default=128, show_default=True, help="0: no prefill.")
@click.option("--decode-tokens", type=click.IntRange(0), default=32, show_default=True, help="0: no decoding.")
@click.option("--depth", type=click.IntRange(0), default=0, show_default=True, help="Tokens before them.")
@click.option("--level", "levels", multiple=True, help="Instead of the CPU's best; may be repeated.")
@click.option("--threads", multiple=True, type=click.IntRange(1), help="By default one a CPU; may be repeated.")
@click.option("--kv-dtype", "kv_dtypes", multiple=True, type=click.Choice(["f16", "f32", "i8"]), default=["f16"])
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there too.")
def main(
    artifacts: tuple[Path, ...],
    prompt_tokens: int,
    decode_tokens: int,
    depth: int,
    levels: tuple[str, ...],
    threads: tuple[int, ...],
    kv_dtypes: tuple[str, ...],
    rounds: int,
    json_file: Path | None,
) -> None:
    """Measure and print a table for prefill and one for decode."""
    if not prompt_tokens and not decode_tokens:
        raise click.UsageError("--prompt-tokens and --decode-tokens are both 0: there is nothing to measure")
    threads = threads or (len(os.sched_getaffinity(0)),)
    found = contenders(artifacts, levels or (None,), threads, kv_dtypes)
    counts = {"prefill": prompt_tokens, "decode": decode_tokens}
    try:
        run(found, counts, depth, rounds)
    except InputError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{inputs.machine()}; {rounds} rounds; ratios to {found[0].name}")
    behind = f" @ {depth}" if depth else ""
    for measure, count in counts.items():
        if count:
            click.echo()
            print_table(found, measure, f"{measure} {count}{behind}")
    if json_file:
        rows = [asdict(c) | {"ratios": {m: c.ratios(found[0], m) for m in MEASURES}} for c in found]
        figures = {"machine": inputs.machine(), "depth": depth, "tokens": counts, "contenders": rows}
        json_file.write_text(json.dumps(figures, indent=2, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
