"""Every encoding's matmul kernel at every level of this CPU: one token, many tokens, instructions, errors.

    python -m benchmarks.encodings [--level avx2] [--only int4] [--threads 2] [--rounds 9] [--json FILE]

One token (decoding) multiplies 5632x2048 matrices, so many that they come from memory, and is compared with plainly
reading as many bytes, which takes turns with it; and 2048x2048 matrices, 12 MiB in all, that stay in the L3 cache. Many
tokens (a prompt) are 128 by 2048x2048. Every round goes through all encodings; the table has the medians. Instructions
are those that one token takes for 32x32 weights, counted by single-stepping; errors are against float64 with the same
rounded activations: the largest and the root mean square, in parts of the results' root mean square.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks import inputs
from benchmarks.kernel_inputs import Matrix, kernel_inputs, random_tensor
from benchmarks.kernels import Kernels, Memory, Shape, measurable_levels
from benchmarks.publish import Table, publish
from benchmarks.reads import Reads
from smc.codegen.kernels.layout import MatrixLayout
from smc.ir import BF16, F16, Encoding, integer
from smc.passes.quantize_nf4 import QuantizeNF4
from smc.targets import Level

MEMORY_BYTES = 320 << 20
"""So many bytes of weights come from memory."""

CACHE_BYTES = 12 << 20
"""So many stay in the L3 cache and don't fit the L2."""

ONE_TOKEN, CACHED_TOKEN = Shape(5632, 2048, 1, MEMORY_BYTES), Shape(2048, 2048, 1, CACHE_BYTES)
MANY_TOKENS = Shape(2048, 2048, 128, CACHE_BYTES)
SAMPLE_SECONDS = 0.02
"""A sample takes about so long, or one product."""

COUNTED_TILES = 8
"""Instructions are those of so many tiles more: whole groups, whole turns of unrolled loops."""

ENCODINGS: dict[str, Encoding] = {
    "int8 g32": integer(8),
    "int8 row, i8 token": integer(8, group="row", activation_group="token"),
    "int8 g32 asymmetric": integer(8, symmetric=False),
    "int6 g32": integer(6),
    "int5 g64 asymmetric": integer(5, group=64, symmetric=False),
    "int4 g32": integer(4),
    "int4 g16": integer(4, group=16),
    "int4 g64": integer(4, group=64),
    "int4 g128": integer(4, group=128),
    "int4 row": integer(4, group="row"),
    "int4 g32 asymmetric": integer(4, symmetric=False),
    "int4 g128 asymmetric": integer(4, group=128, symmetric=False),
    "int4 g32 offsets": Encoding.of(bits=4, minimum=True),
    "int4 g32 two-level": Encoding.of(bits=4, super_group=8),
    "int4 g32 two-level asymmetric": Encoding.of(bits=4, super_group=8, zero="stored"),
    "int3 g32": integer(3),
    "int2 g32": integer(2),
    "ternary 2 bits g32": Encoding.of(bits=2, zero=1),
    "ternary 2 bits, i8 token": Encoding.of(bits=2, zero=1, group="tensor", activation_group="token"),
    "ternary base 3 g32": Encoding.of("base3"),
    "ternary base 3, i8 token": Encoding.of("base3", group="tensor", activation_group="token"),
    "16 int8 entries g64 (nf4)": QuantizeNF4(grid="i8").encoding(),
    "64 int8 entries g32": Encoding.of(bits=6, codebook=tuple(range(-128, 128, 4))),
    "256 int8 entries g32": Encoding.of(bits=8, codebook=tuple((37 * i + 11) % 256 - 128 for i in range(256))),
    "int8 g32, float inputs": Encoding.of(bits=8, activation="none"),
    "int4 g32, float inputs": Encoding.of(bits=4, activation="none"),
    "16 float entries g64 (nf4)": QuantizeNF4().encoding(),
    "64 float entries g64": Encoding.of(bits=6, codebook=tuple(float(v) for v in np.linspace(-1, 1, 64)), group=64),
    "f16": F16,
    "bf16": BF16,
}
"""What the table has; the first int4 is what the others' many tokens are compared with."""

BASE = "int4 g32"


@dataclass
class Row:
    """The figures of one encoding on one level; those of all threads together."""

    encoding: str
    level: str
    bits: float  # a weight, with scales
    instructions: float | None  # of one token, for 32x32 weights
    largest_error: float
    error: float
    memory: list[float] = field(default_factory=list)  # bytes/s of every round
    reads: list[float] = field(default_factory=list)  # bytes/s of the plain reads beside them
    cached: list[float] = field(default_factory=list)  # seconds of one 2048x2048 product
    macs: list[float] = field(default_factory=list)  # multiply-adds/s of many tokens

    @property
    def share(self) -> float:
        """Of the bandwidth of plain reads."""
        return statistics.median(own / plain for own, plain in zip(self.memory, self.reads, strict=True))


def figures(name: str, level: Level, kernels: Kernels, memory: Memory, activations: Memory, out: Memory) -> Row:
    """What needs no quiet machine."""
    encoding = ENCODINGS[name]
    counts = [
        kernels.instructions(kernels.product(encoding, Shape(32, 32 * tiles, 1), memory, activations, out))
        for tiles in (COUNTED_TILES, 2 * COUNTED_TILES)
    ]
    instructions = None if min(counts) < 0 else (counts[1] - counts[0]) / COUNTED_TILES
    layout = MatrixLayout(encoding, ONE_TOKEN.rows, ONE_TOKEN.columns)
    bits = 8 * layout.total_bytes / (ONE_TOKEN.rows * ONE_TOKEN.columns)
    return Row(name, level.name, bits, instructions, *errors(encoding, level, kernels))


def errors(encoding: Encoding, level: Level, kernels: Kernels) -> tuple[float, float]:
    """The largest error and the root mean square one, in parts of the results' root mean square."""
    rows, columns, tokens = 96, 2000, 9
    matrix = Matrix(random_tensor(encoding, rows, columns, seed=0), level.family)
    x = np.random.default_rng(1).standard_normal((tokens, columns)).astype(np.float32)
    arguments, rounded = kernel_inputs(encoding, level, x)
    result = np.empty((tokens, rows), np.float32)
    numbers = (tokens, columns, arguments[0].shape[1], rows, 0, 0, 0, rows // 32)
    kernels.run(encoding, [*arguments, matrix.codes, matrix.scales, matrix.zeros, matrix.scales, result, *numbers])
    expected = rounded @ matrix.values.T
    size = np.sqrt(np.mean(expected**2))
    return float(np.abs(result - expected).max() / size), float(np.sqrt(np.mean((result - expected) ** 2)) / size)


def measure(rows: Sequence[Row], kernels: Kernels, memories: Sequence[Memory], threads: int, rounds: int) -> None:
    """Add a figure of every round to all rows."""
    shapes = ONE_TOKEN, CACHED_TOKEN, MANY_TOKENS
    products = {row.encoding: [kernels.product(ENCODINGS[row.encoding], s, *memories) for s in shapes] for row in rows}
    reads = Reads()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: os.getpid(), range(threads)))

        def seconds(product: object, least: int) -> float:
            one = kernels.seconds(pool, threads, product, least)
            calls = max(least, round(SAMPLE_SECONDS / one))
            return kernels.seconds(pool, threads, product, calls)

        for row in itertools.chain.from_iterable([rows] * rounds):
            one, cached, many = products[row.encoding]
            size = one.matrices * one.workload.bytes
            before = reads.seconds(pool, threads, memories[0], size)
            row.memory.append(size / (kernels.seconds(pool, threads, one, one.matrices) * one.matrices))
            after = reads.seconds(pool, threads, memories[0], size)
            row.reads.append(2 * size / (before + after))
            row.cached.append(seconds(cached, cached.matrices))
            row.macs.append(MANY_TOKENS.macs / seconds(many, 1))


PUBLISHED = (
    "int8 g32",
    "int6 g32",
    "int5 g64 asymmetric",
    "int4 g32",
    "int4 g32 asymmetric",
    "int3 g32",
    "int2 g32",
    "ternary 2 bits, i8 token",
    "ternary base 3, i8 token",
    "16 int8 entries g64 (nf4)",
    "int4 g32, float inputs",
    "f16",
)
HEADER = ("encoding", "bits", "GB/s", "of reads", "in L3, ms", "instructions", "GMAC/s", "of int4", "largest", "rms")


def cells(row: Row, base: float | None) -> list[str]:
    """A row of the table."""
    macs = statistics.median(row.macs)
    return [
        row.encoding,
        f"{row.bits:.2f}",
        f"{statistics.median(row.memory) / 1e9:.1f}",
        f"{row.share:.0%}",
        f"{statistics.median(row.cached) * 1e3:.3f}",
        "–" if row.instructions is None else f"{row.instructions:.0f}",
        f"{macs / 1e9:.0f}",
        "–" if base is None else f"{macs / base:.2f}",
        f"{row.largest_error:.0e}",
        f"{row.error:.0e}",
    ]


def print_table(rows: Sequence[Row]) -> None:
    """The rows of one level."""
    base = next((statistics.median(row.macs) for row in rows if row.encoding == BASE), None)
    table = [HEADER, *(cells(row, base) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    for line in table:
        numbers = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        click.echo("  ".join([line[0].ljust(widths[0]), *numbers]))


def levels_side_by_side(rows: Sequence[Row]) -> Table:
    """The table of docs/benchmarks.md: the encodings of PUBLISHED at every level."""
    levels = list(dict.fromkeys(row.level for row in rows))
    columns = ["encoding", "bits", *(text for level in levels for text in (f"{level} GB/s", "of reads", "GMAC/s"))]
    by_place = {(row.encoding, row.level): row for row in rows}
    lines = []
    for name in PUBLISHED:
        found = [by_place[name, level] for level in levels if (name, level) in by_place]
        figures = (
            text
            for row in found
            for text in (
                f"{statistics.median(row.memory) / 1e9:.1f}",
                f"{100 * row.share:.0f} %",
                f"{statistics.median(row.macs) / 1e9:.0f}",
            )
        )
        if len(found) == len(levels):
            lines.append([name, f"{found[0].bits:.2f}", *figures])
    return Table("", columns, lines)


@click.command(help=__doc__)
@click.option("--level", "names", multiple=True, help="Only this feature level; may be repeated.")
@click.option("--only", multiple=True, help="Only encodings whose name has this in it; may be repeated.")
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--publish", "published", is_flag=True, help="Write the table for docs/benchmarks.md.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures there too.")
def main(
    names: tuple[str, ...], only: tuple[str, ...], threads: int, rounds: int, published: bool, json_file: Path | None
) -> None:
    """Build, measure and print, level by level."""
    torch.set_num_threads(threads)
    chosen = [name for name in ENCODINGS if not only or any(part in name for part in only)]
    levels = [level for level in measurable_levels() if not names or level.name in names]
    if not chosen or not levels:
        raise SystemExit("there is no such encoding, or this CPU has no such level")
    memories = Memory(MEMORY_BYTES), Memory(4 << 20), Memory(4 << 20)
    results: list[Row] = []
    click.echo(f"{inputs.machine()}; {threads} threads; {rounds} rounds")
    for level in levels:
        with click.progressbar(length=1000, label=f"build {level.name}") as progress:
            kernels = Kernels(
                [ENCODINGS[name] for name in chosen],
                level,
                MANY_TOKENS,
                lambda done: progress.update(round(1000 * done) - progress.pos),
            )
        rows = [figures(name, level, kernels, *memories) for name in chosen]
        measure(rows, kernels, memories, threads, rounds)
        click.echo(f"\n{level.name}\n")
        print_table(rows)
        results += rows
    if json_file:
        report = {"machine": inputs.machine(), "threads": threads, "rows": [asdict(row) for row in results]}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if published:
        publish("encodings", [levels_side_by_side(results)])


if __name__ == "__main__":
    main()
