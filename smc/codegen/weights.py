"""The weights member of an artifact: where every parameter lies, and writing it one tensor at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from smc.codegen.layout import ALIGNMENT, MatrixLayout, check_packable, pack_matrix, padded
from smc.codegen.plan import Plan, multiplied, padded_width
from smc.errors import InputError
from smc.ir import Parameter, matrix_shape


@dataclass(frozen=True)
class MatrixPlace:
    """Byte offsets of a packed matrix in the weights, its padded rows and true columns."""

    codes: int
    scales: int
    zeros: int
    rows: int
    columns: int


@dataclass
class WeightTable:
    """Where every parameter lies. token_bytes: what one token multiplies, for bandwidth figures."""

    matrices: dict[str, MatrixPlace]
    vectors: dict[str, int]
    total_bytes: int
    token_bytes: int


def place_weights(plan: Plan) -> WeightTable:
    """Lay out all parameters in order of use; InputError for an encoding without a kernel."""
    matrices, vectors, offset = {}, {}, 0
    sizes: dict[str, int] = {}
    for parameter in plan.matrices():
        if len(parameter.shape) != 2:
            raise InputError(f"there is no kernel for {len(parameter.shape)}-dimensional weights yet ({parameter.name})")
        check_packable(parameter.encoding)
        layout = MatrixLayout(parameter.encoding, *matrix_shape(parameter.shape))
        matrices[parameter.name] = MatrixPlace(
            offset, offset + layout.scales_offset, offset + layout.zeros_offset, layout.padded_rows, layout.columns
        )
        sizes[parameter.name] = layout.total_bytes
        offset += layout.total_bytes
    for parameter in plan.vectors():
        vectors[parameter.name] = offset
        offset += padded(padded_width(parameter.shape[0]) * 4, ALIGNMENT)
    vector_bytes = offset - sum(sizes.values())
    token_bytes = sum(sizes[p.name] for p in multiplied(plan)) + vector_bytes
    return WeightTable(matrices, vectors, offset, token_bytes)


def write_weights(plan: Plan, table: WeightTable, out: BinaryIO, progress: Callable[[float], None]) -> str:
    """Load, pack and write every parameter, one in memory at a time; returns the hex SHA-256 of what was written."""
    digest, written = hashlib.sha256(), 0

    def write(data: np.ndarray) -> None:
        nonlocal written
        view = memoryview(data).cast("B")
        digest.update(view)
        out.write(view)
        written += len(view)
        progress(written / table.total_bytes)

    for parameter in plan.matrices():
        assert written == table.matrices[parameter.name].codes
        write(pack_matrix(parameter.load()))
    for parameter in plan.vectors():
        assert written == table.vectors[parameter.name]
        write(_vector(parameter))
    assert written == table.total_bytes
    return digest.hexdigest()


def _vector(parameter: Parameter) -> np.ndarray:
    values = parameter.values().numpy()
    full = np.zeros(padded(padded_width(len(values)) * 4, ALIGNMENT) // 4, np.float32)
    full[: len(values)] = values
    return full
