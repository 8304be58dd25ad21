"""How fast threads read packed weights in several orders: why the layout is one stream and a thread's share contiguous.

    python -m benchmarks.streams [--megabytes 256] [--threads 2] [--rounds 25] [--json FILE]

A loop in C goes through tiles of 32 rows by 32 columns, 512 bytes of 4-bit codes and 64 of scales, and does with every
line about what a product with one token does. In one stream a tile's scales are before its codes, as in the packed
layout; else codes and scales are two streams. Prefetched is every line 12 KiB sooner, into the second cache. Each
thread has one contiguous share; in the last row threads alternate between pieces of 10 KiB. All orders run in every
round. GB/s are of all threads together: the median, and the highest, when the memory was another's least.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import statistics
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import inputs
from benchmarks.kernels import Memory, load_c, wall_seconds
from smc.ir import ceil_div

SOURCE = Path(__file__).with_name("streams.c")
SCALE_BYTES, CODE_BYTES = 64, 512
TILE_BYTES = SCALE_BYTES + CODE_BYTES
PIECE_TILES = 18
"""10 KiB."""

PAGE = 4096
MARGIN = 1 << 20
"""Bytes behind the tiles, into which prefetches run."""


class Walk(ctypes.Structure):
    """struct walk of streams.c."""

    _fields_ = [
        *((name, c_void_p) for name in ("codes", "scales")),
        *((name, c_int64) for name in ("code_stride", "scale_stride", "begin", "end", "run", "step")),
    ]


@dataclass(frozen=True)
class Order:
    """An order to read in; apart: codes and scales are two streams; turns: threads alternate between pieces."""

    name: str
    apart: bool = False
    prefetched: bool = False
    turns: bool = False


ORDERS = (
    Order("one stream"),
    Order("one stream, prefetched", prefetched=True),
    Order("codes and scales apart", apart=True),
    Order("codes and scales apart, prefetched", apart=True, prefetched=True),
    Order("one stream, threads alternate", turns=True),
)


def walks(order: Order, address: int, tiles: int, threads: int) -> list[Walk]:
    """What each thread reads; address: of tiles * TILE_BYTES + PAGE bytes, at least."""
    if order.apart:
        scales = address + ceil_div(tiles * CODE_BYTES, PAGE) * PAGE
        places = address, scales, CODE_BYTES, SCALE_BYTES
    else:
        places = address + SCALE_BYTES, address, TILE_BYTES, TILE_BYTES
    if order.turns:
        return [Walk(*places, i * PIECE_TILES, tiles, PIECE_TILES, threads * PIECE_TILES) for i in range(threads)]
    bounds = [tiles * i // threads for i in range(threads + 1)]
    return [Walk(*places, begin, end, tiles, tiles) for begin, end in itertools.pairwise(bounds)]


def measure(size: int, counts: list[int], rounds: int) -> dict[Order, dict[int, list[float]]]:
    """Bytes/s of every round by order and number of threads; taking turns needs two."""
    library = load_c(SOURCE, "-march=native")
    functions = {False: library.read_tiles, True: library.read_tiles_prefetched}
    for function in functions.values():
        function.argtypes, function.restype = [POINTER(Walk)], c_int64
    tiles = size // TILE_BYTES
    memory = Memory(tiles * TILE_BYTES + MARGIN)
    figures: dict[Order, dict[int, list[float]]] = {
        order: {threads: [] for threads in counts if threads > 1 or not order.turns} for order in ORDERS
    }
    with (
        ThreadPoolExecutor(max(counts)) as pool,
        click.progressbar(length=rounds * sum(map(len, figures.values())), label="rounds") as progress,
    ):
        list(pool.map(lambda _: os.getpid(), range(max(counts))))
        for _ in range(rounds):
            for order, by_threads in figures.items():
                for threads, speeds in by_threads.items():
                    parts = [(walk,) for walk in walks(order, memory.address, tiles, threads)]
                    seconds = wall_seconds(pool, functions[order.prefetched], parts)
                    speeds.append(tiles * TILE_BYTES / seconds)
                    progress.update(1)
    return figures


def print_table(figures: Mapping[Order, Mapping[int, list[float]]], counts: list[int]) -> None:
    """One line an order."""
    header = "".join(f"{f'{threads} thread' + 's' * (threads > 1):>12}{'highest':>9}" for threads in counts)
    click.echo(f"{'GB/s':<36}{header}")
    for order, by_threads in figures.items():
        cells = ""
        for threads in counts:
            speeds = by_threads.get(threads)
            cells += f"{statistics.median(speeds) / 1e9:>12.1f}{max(speeds) / 1e9:>9.1f}" if speeds else " " * 21
        click.echo(f"{order.name:<36}{cells}".rstrip())


@click.command(help=__doc__)
@click.option("--megabytes", type=click.IntRange(1), default=256, show_default=True, help="Of tiles, in MiB.")
@click.option("--threads", type=click.IntRange(1), default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=25, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures there too.")
def main(megabytes: int, threads: int, rounds: int, json_file: Path | None) -> None:
    """Measure one thread and so many, and print the table."""
    counts = sorted({1, threads})
    figures = measure(megabytes << 20, counts, rounds)
    click.echo(f"{inputs.machine()}; {megabytes} MiB; {rounds} rounds")
    print_table(figures, counts)
    if json_file:
        rows = {order.name: by_threads for order, by_threads in figures.items()}
        report = {"machine": inputs.machine(), "megabytes": megabytes, "bytes_per_s": rows}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
