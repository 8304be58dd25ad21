"""The weights member of an artifact: the place of every parameter, written one tensor at a time."""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from smc.codegen.kernels.layout import ALIGNMENT, MatrixLayout, padded
from smc.codegen.packing import check_packable, pack_matrix
from smc.codegen.plan.plan import Plan
from smc.codegen.plan.work import padded_width
from smc.codegen.proof import Expected
from smc.errors import InputError
from smc.ir import Parameter, stack_shape

READY_BYTES = 64 << 20
"""The limit of packed bytes that wait to be written."""


@dataclass(frozen=True)
class MatrixPlace:
    """Byte offsets of a packed matrix in the weights, its padded rows and true columns.

    Of a stack, those of the first matrix; each: bytes from one to the next.
    """

    codes: int
    scales: int
    zeros: int
    order: int
    each: int
    rows: int
    columns: int


@dataclass
class WeightTable:
    """The place of every parameter. token_bytes: the bytes that one token multiplies, for bandwidth figures."""

    matrices: dict[str, MatrixPlace]
    vectors: dict[str, int]
    total_bytes: int
    token_bytes: int


def place_weights(plan: Plan) -> WeightTable:
    """Lay out all parameters in order of use; InputError for an encoding without a kernel."""
    matrices, vectors, offset = {}, {}, 0
    sizes: dict[str, int] = {}
    for parameter in plan.matrices():
        if len(parameter.shape) > 3:
            raise InputError(
                f"there is no kernel for {len(parameter.shape)}-dimensional weights yet ({parameter.name})"
            )
        count, rows, columns = stack_shape(parameter.shape)
        check_packable(parameter.encoding, columns)
        layout = MatrixLayout(parameter.encoding, rows, columns)
        matrices[parameter.name] = MatrixPlace(
            offset,
            offset + layout.scales_offset,
            offset + layout.zeros_offset,
            offset + layout.order_offset,
            layout.total_bytes,
            layout.padded_rows,
            layout.columns,
        )
        sizes[parameter.name] = count * layout.total_bytes
        offset += count * layout.total_bytes
    for parameter in plan.vectors():
        vectors[parameter.name] = offset
        offset += padded(padded_width(parameter.shape[0]) * 4, ALIGNMENT)
    vector_bytes = offset - sum(sizes.values())
    read = plan.module.chosen_by_token()
    multiplied = (sizes[p.name] * read.get(p.name, 1) for p in plan.multiplied())
    token_bytes = int(sum(multiplied)) + vector_bytes
    return WeightTable(matrices, vectors, offset, token_bytes)


def write_weights(
    plan: Plan,
    table: WeightTable,
    family: str,
    out: IO[bytes],
    progress: Callable[[float], None],
    expected: Expected | None = None,
) -> str:
    """Load, pack and write every parameter, a few in memory at a time; returns the hex SHA-256 of what was written.

    expected: gets each loaded matrix.
    """
    digest, written = hashlib.sha256(), 0

    def write(data: np.ndarray) -> None:
        nonlocal written
        view = data.view(np.uint8).data
        digest.update(view)
        out.write(view)
        written += len(view)

    matrices = plan.matrices()
    for parameter, data in zip(matrices, _packed(matrices, family, progress, expected), strict=True):
        assert written == table.matrices[parameter.name].codes
        write(data)
        if expected is not None:
            expected.advance()
    for parameter in plan.vectors():
        assert written == table.vectors[parameter.name]
        write(_vector(parameter))
    assert written == table.total_bytes
    return digest.hexdigest()


def _packed(
    parameters: list[Parameter], family: str, progress: Callable[[float], None], expected: Expected | None
) -> Iterator[np.ndarray]:
    """The packed matrices in order, loaded by a few threads.

    At most READY_BYTES of them wait to be written, so that no thread idles while another has a large matrix.
    """
    import torch

    threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)
    sizes = [parameter.encoding.stored_bits(parameter.shape) // 8 for parameter in parameters]
    total, done = sum(sizes), 0
    waiting = collections.deque(zip(parameters, sizes, strict=True))
    running = collections.deque[tuple[concurrent.futures.Future[np.ndarray], int]]()
    before = torch.get_num_threads()
    # One thread per matrix: torch's own threads wait for each other, and stall if another process uses a core.
    torch.set_num_threads(1)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        while running or waiting:
            while waiting and (len(running) < threads or sum(n for _, n in list(running)[1:]) < READY_BYTES):
                parameter, size = waiting.popleft()
                running.append((pool.submit(_load_packed, parameter, family, expected), size))
            while not running[0][0].done():
                unfinished = [future for future, _ in running if not future.done()]
                concurrent.futures.wait(unfinished, return_when=concurrent.futures.FIRST_COMPLETED)
                progress((done + sum(n for future, n in running if future.done())) / total)
            first, size = running.popleft()
            done += size
            yield first.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _load_packed(parameter: Parameter, family: str, expected: Expected | None) -> np.ndarray:
    tensor = parameter.load()
    if expected is not None:
        expected.take(parameter.name, tensor)
    return pack_matrix(tensor, family)


def _vector(parameter: Parameter) -> np.ndarray:
    values = parameter.values().numpy()
    full = np.zeros(padded(padded_width(len(values)) * 4, ALIGNMENT) // 4, np.float32)
    full[: len(values)] = values
    return full
