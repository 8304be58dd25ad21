"""Whether matrices with half of their weights 0 would run faster if they were stored and multiplied sparse, on x86.

    python -m benchmarks.sparse

Plain C for AVX-512 (sparse.c), the same loop for dense and sparse, so that nothing but the form differs: int8 and 4
bits, any half of the weights and 2:4, one vector (decode). Matrices that lie in the cache, and such as come from
memory. Results are checked against numpy. Rounds alternate; a figure is the best of them.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks import inputs

SHAPES = {"in the cache": (576, 1536, 200), "from memory": (16384, 4096, 3)}
"""Rows, columns, and how often a round multiplies. 576 · 1536: the down projection of SmolLM2."""

Array = NDArray[Any]


def library() -> Any:
    """sparse.c for this machine."""
    folder = tempfile.mkdtemp(prefix="smc-")
    path = Path(folder) / "sparse.so"
    command = [sys.executable, "-m", "ziglang", "cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", str(path)]
    subprocess.run([*command, str(Path(__file__).with_name("sparse.c"))], check=True)
    return ctypes.CDLL(str(path))


def halves(rng: np.random.Generator, rows: int, columns: int, pattern: str) -> Array:
    """bool [rows, columns]: which weights stay; exactly half of a row, or 2 of every 4."""
    width = 4 if pattern == "2:4" else columns
    order = rng.random((rows, columns // width, width), np.float32)
    stays = np.zeros(order.shape, bool)
    np.put_along_axis(stays, np.argpartition(order, width // 2, axis=-1)[..., : width // 2], True, axis=-1)
    return stays.reshape(rows, columns)


class Product:
    """One kernel on one matrix: `run` computes y, `bytes` is what it reads of the matrix."""

    def __init__(self, function: Any, arrays: list[Array | None], x: Array, shape: tuple[int, int]) -> None:
        self.function, self.arrays, self.x, self.shape = function, arrays, x, shape
        self.y = np.zeros(shape[0], np.int32)
        self.bytes = sum(array.nbytes for array in arrays if array is not None)

    def run(self, pool: ThreadPoolExecutor, threads: int) -> None:
        """With the rows shared out."""
        rows, columns = self.shape
        pointers = [None if a is None else a.ctypes.data_as(ctypes.c_void_p) for a in (*self.arrays, self.x, self.y)]

        def part(index: int) -> None:
            begin, end = (rows * i // threads for i in (index, index + 1))
            self.function(*pointers, *(ctypes.c_int64(n) for n in (columns, begin, end)))

        list(pool.map(part, range(threads)))


def products(rows: int, columns: int, lib: Any) -> dict[str, Product]:
    """All kernels on one random matrix, their results checked."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 128, columns, np.uint8)
    weights = rng.integers(-7, 8, (rows, columns), np.int8)
    found = {}

    def add(name: str, function: Any, arrays: list[Array | None], values: Array) -> None:
        found[name] = Product(function, arrays, x, (rows, columns))
        with ThreadPoolExecutor(1) as pool:
            found[name].run(pool, 1)
        assert np.array_equal(found[name].y[:64], values[:64].astype(np.int32) @ x.astype(np.int32)), name

    def codes(values: Array, block: int) -> Array:
        parts = (values + 8).astype(np.uint8).reshape(rows, -1, 2, block // 2)
        return np.ascontiguousarray(parts[:, :, 0] | parts[:, :, 1] << 4)

    add("int8 dense", lib.dense8, [weights], weights)
    add("4 bits dense", lib.dense4, [codes(weights, 64)], weights)
    for pattern in ("any", "2:4"):
        stays = halves(rng, rows, columns, pattern)
        masks = np.packbits(stays, axis=1, bitorder="little").view(np.uint64)
        kept = weights[stays]
        starts = np.concatenate([[0], stays.sum(1).cumsum()[:-1]]).astype(np.int64) if pattern == "any" else None
        padded = np.concatenate([kept, np.zeros(64, np.int8)])  # the last load reads a whole vector
        add(f"int8 {pattern}", lib.sparse8, [padded, masks, starts], weights * stays)
        if pattern == "2:4":
            add("4 bits 2:4", lib.sparse4, [codes(kept.reshape(rows, -1), 32), masks, starts], weights * stays)
    return found


def best_times(jobs: dict[str, Product], repeat: int, threads: int, rounds: int) -> dict[str, float]:
    """Seconds of a product: the best of rounds that alternate."""
    best = dict.fromkeys(jobs, float("inf"))
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            for name, job in jobs.items():
                best[name] = min(best[name], _timed(partial(job.run, pool, threads), repeat))
    return best


def _timed(run: Callable[[], None], repeat: int) -> float:
    started = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - started) / repeat


@click.command(help=__doc__)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=10, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(threads: int, rounds: int, as_json: bool) -> None:
    """Measure both sizes and print a table."""
    lib, found = library(), {}
    for place, (rows, columns, repeat) in SHAPES.items():
        jobs = products(rows, columns, lib)
        for count in sorted({1, threads} if place == "from memory" else {1}):
            times = best_times(jobs, repeat, count, rounds)
            for name, seconds in times.items():
                dense = times[name.rpartition(" ")[0] + " dense"]
                found[f"{name}, {place}, {count} threads"] = {
                    "microseconds": round(seconds * 1e6, 1),
                    "GB/s": round(jobs[name].bytes / seconds / 1e9, 1),
                    "speed of dense": round(dense / seconds, 2),
                }
    if as_json:
        click.echo(json.dumps({"machine": inputs.machine(), **found}, indent=1))
        return
    for label, figures in found.items():
        click.echo(f"{label:<40} {'  '.join(f'{key} {value}' for key, value in figures.items())}")


if __name__ == "__main__":
    main()
