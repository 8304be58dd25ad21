"""Packs a matrix in the layout (kernels/layout.py) of a family of machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from smc.codegen.kernels.layout import (
    FIVE,
    QUADS,
    ROW_BLOCK,
    ROW_VECTOR,
    TILE,
    MatrixLayout,
    Span,
    padded,
    planes,
    span_of,
    stored_bias,
)
from smc.errors import InputError
from smc.ir import EncodedTensor, Encoding, ceil_div

if TYPE_CHECKING:
    import torch


CHUNK_WEIGHTS = 1 << 24
"""So many are packed at once: what is made on the way takes several bytes for each."""


def can_run(encoding: Encoding, columns: int = 0) -> str | None:
    """Why there is no packed layout, and so no kernel, for an encoding with rows of `columns` columns; None if there
    is."""
    if encoding.is_float:
        return None
    inputs, group = encoding.input_group, encoding.scales.group
    if encoding.transform.rotation and columns % encoding.transform.rotation:
        return f"a rotation of {encoding.transform.rotation} columns at a time, which do not divide {columns} columns"
    if encoding.scales.super_group is not None and not isinstance(group, int):
        return f"two-level scales with one scale per {group}"
    if isinstance(encoding.scales.group, int) and encoding.scales.group != 16 and encoding.scales.group % TILE:
        return f"groups of {encoding.scales.group} (16 or a multiple of 32)"
    if encoding.rounds_inputs and isinstance(inputs, int):
        if inputs % TILE:
            return f"activation groups of {inputs} (a multiple of 32, or token)"
        if isinstance(group, int) and group % inputs and inputs % group:
            return f"activation groups of {inputs} that cut groups of {group}"
    return None


def check_packable(encoding: Encoding, columns: int = 0) -> None:
    """Raise InputError if `can_run` has a reason."""
    if reason := can_run(encoding, columns):
        raise InputError(f"there is no kernel yet for encoding {encoding}: {reason}")


def pack_matrix(tensor: EncodedTensor, family: str) -> np.ndarray:
    """The packed bytes (uint8) of a matrix in its encoding, for a target family; of a stack, matrix after matrix."""
    if len(tensor.shape) > 2:
        stack = np.empty((tensor.shape[0], MatrixLayout(tensor.encoding, *tensor.shape[1:]).total_bytes), np.uint8)
        for index, matrix in enumerate(stack):
            matrix[:] = pack_matrix(tensor.matrix(index), family)
        return stack.reshape(-1)
    encoding, (rows, columns) = tensor.encoding, tensor.shape
    check_packable(encoding, columns)
    layout = MatrixLayout(encoding, rows, columns)
    out = np.zeros(layout.total_bytes, np.uint8)
    step = max(1, CHUNK_WEIGHTS // max(1, columns * ROW_BLOCK)) * ROW_BLOCK
    for first in range(0, rows, step):
        part = tensor.part(slice(first, first + step))
        own = MatrixLayout(encoding, part.shape[0], columns)
        blocks = layout.padded_rows // ROW_BLOCK, own.padded_rows // ROW_BLOCK
        begins = 0, layout.scales_offset, layout.zeros_offset
        for begin, pieces in zip(begins, _pieces(part, own, family), strict=True):
            for piece in pieces:
                block_bytes = len(piece) // blocks[1]
                out[begin + first // ROW_BLOCK * block_bytes :][: len(piece)] = piece
                begin += block_bytes * blocks[0]
    if tensor.order is not None:
        order = np.arange(layout.tiles * TILE, dtype=np.int32)  # padding stays where it is
        order[:columns] = tensor.order.numpy()
        out[layout.order_offset :][: order.nbytes] = order.view(np.uint8)
    return out


def _pieces(tensor: EncodedTensor, layout: MatrixLayout, family: str) -> tuple[list[np.ndarray], ...]:
    """Of some rows: the codes; scales and minima that have a place of their own; codes of scales and zeros."""
    encoding, rows = layout.encoding, layout.rows
    if encoding.is_float:
        assert tensor.values is not None
        return [_pack_floats(tensor.values, layout)], [], []
    assert tensor.codes is not None and tensor.scales is not None
    codes = tensor.codes.reshape(rows, -1).numpy()[:, : layout.tiles * TILE]
    packed = _pack_codes(codes ^ stored_bias(encoding, family), layout, family)
    # One scale for everything is repeated in every row.
    scales = [_pack_scales(tensor.scales.expand(rows, -1), layout, layout.super_groups)]
    if encoding.stores_minima:
        assert tensor.offsets is not None
        scales.append(_pack_scales(tensor.offsets, layout, layout.minima))
    if span := span_of(encoding):
        packed, scales = _interleave(packed, scales, span, layout), []
    rest = []
    for part in (tensor.scale_codes, tensor.offset_codes):
        if part is not None:
            rest.append(_pack_bytes(part.numpy().view(np.uint8), layout))
    if tensor.zeros is not None:
        rest.append(_pack_zeros(tensor.zeros.numpy(), layout))
    return [packed], scales, rest


def _row_blocks(array: np.ndarray, layout: MatrixLayout, width: int) -> np.ndarray:
    """[rows, x] → [row blocks, width, 32], missing rows and columns 0."""
    full = np.zeros((layout.padded_rows, width), array.dtype)
    full[: layout.rows, : array.shape[1]] = array
    return full.reshape(layout.padded_rows // ROW_BLOCK, ROW_BLOCK, width).transpose(0, 2, 1)


def _pack_floats(values: torch.Tensor, layout: MatrixLayout) -> np.ndarray:
    import torch

    bits = values.contiguous().view(torch.int32 if layout.encoding.float_dtype == "f32" else torch.int16).numpy()
    return np.ascontiguousarray(_row_blocks(bits, layout, layout.columns)).view(np.uint8).reshape(-1)


def _pack_codes(codes: np.ndarray, layout: MatrixLayout, family: str) -> np.ndarray:
    full = np.zeros((layout.padded_rows, layout.tiles * TILE), np.uint8)
    full[: layout.rows, : codes.shape[1]] = codes
    # [row vector, row, tile, quad, column of quad] → [row vector, tile, quad, row, column]
    vectors = full.reshape(-1, ROW_VECTOR, layout.tiles, TILE // 4, 4).transpose(0, 2, 3, 1, 4)
    vectors = np.ascontiguousarray(vectors).reshape(-1, layout.tiles, TILE // 4, 4 * ROW_VECTOR)
    if layout.encoding.is_base3:
        cells = _base3_cells(vectors)
        return _by_rows(cells, (QUADS,)) if family == "cuda" else _by_blocks(cells)
    packed, low = [], 0
    for width in planes(layout.encoding.bits):
        plane = (vectors >> low) & ((1 << width) - 1) if width < 8 else vectors
        plane = plane.reshape(*plane.shape[:2], width, 8 // width, 4 * ROW_VECTOR)
        word = plane[:, :, :, 0]
        for place in range(1, 8 // width):
            word = word | (plane[:, :, :, place] << (place * width))
        packed.append(word)
        low += width
    cells = np.concatenate(packed, axis=2)
    return _by_rows(cells, planes(layout.encoding.bits)) if family == "cuda" else _by_blocks(cells)


def _by_blocks(cells: np.ndarray) -> np.ndarray:
    """[row vector, tile or five tiles, packed vector, 64] → [row block, tile, row vector, packed vector, 64]."""
    blocks = cells.reshape(-1, ROW_BLOCK // ROW_VECTOR, *cells.shape[1:])
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3, 4)).reshape(-1)


def _by_rows(cells: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """[row vector, tile or five tiles, packed vector, 64] → [row block, tile, plane, row, packed vector of it, 4].

    widths: how many packed vectors each plane has.
    """
    blocks, tiles = len(cells) // 2, cells.shape[1]
    rows = cells.reshape(blocks, ROW_BLOCK // ROW_VECTOR, tiles, -1, ROW_VECTOR, 4).transpose(0, 2, 1, 4, 3, 5)
    parts, begin = [], 0
    for width in widths:
        parts.append(rows[..., begin : begin + width, :].reshape(blocks, tiles, -1))
        begin += width
    return np.ascontiguousarray(np.concatenate(parts, axis=2)).reshape(-1)


def _base3_cells(vectors: np.ndarray) -> np.ndarray:
    """Codes [row vector, tile, quad, 64] → bytes [row vector, five tiles, quad, 64]."""
    full = np.zeros((len(vectors), padded(vectors.shape[1], FIVE), *vectors.shape[2:]), np.uint8)
    full[:, : vectors.shape[1]] = vectors
    digits = full.reshape(len(full), -1, FIVE, *full.shape[2:])
    number = np.zeros(digits[:, :, 0].shape, np.uint16)
    for place in range(FIVE):
        number = number * 3 + digits[:, :, place]
    return _FRACTIONS[number]


_FRACTIONS = (-(-256 * np.arange(3**FIVE) // 3**FIVE)).astype(np.uint8)
"""The least byte that is n / 243 or more, n by the index."""


def _pack_scales(scales: torch.Tensor, layout: MatrixLayout, count: int) -> np.ndarray:
    import torch

    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[layout.encoding.scales.dtype]
    bits = scales.to(dtype).contiguous().view(torch.int32 if dtype == torch.float32 else torch.int16).numpy()
    return np.ascontiguousarray(_row_blocks(bits, layout, count)).view(np.uint8).reshape(-1)


def _interleave(codes: np.ndarray, parts: Sequence[np.ndarray], span: Span, layout: MatrixLayout) -> np.ndarray:
    """Bytes of codes, and of scales and offsets, in the order [row block][span](scales, offsets, tiles)."""
    blocks, spans = layout.padded_rows // ROW_BLOCK, ceil_div(layout.tiles, span.tiles)
    tiles = np.zeros((blocks, spans * span.tiles, span.tile_bytes), np.uint8)
    tiles[:, : layout.tiles] = codes.reshape(blocks, layout.tiles, span.tile_bytes)
    scales = [part.reshape(blocks, spans, -1) for part in parts]
    whole = np.concatenate([*scales, tiles.reshape(blocks, spans, -1)], axis=2).reshape(blocks, -1)
    missing = (spans * span.tiles - layout.tiles) * span.tile_bytes
    return np.ascontiguousarray(whole[:, : whole.shape[1] - missing]).reshape(-1)


def _pack_bytes(values: np.ndarray, layout: MatrixLayout) -> np.ndarray:
    return np.ascontiguousarray(_row_blocks(values, layout, layout.groups)).reshape(-1)


def _pack_zeros(zeros: np.ndarray, layout: MatrixLayout) -> np.ndarray:
    if layout.encoding.zero_bits == 8:
        return _pack_bytes(zeros, layout)
    blocks = _row_blocks(zeros, layout, padded(layout.groups, 2))
    return np.ascontiguousarray(blocks[:, 0::2] | (blocks[:, 1::2] << 4)).reshape(-1)
