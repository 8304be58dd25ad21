"""The packed layout of matrices: fixed by (target family, encoding), the same for every level and kernel.

Rows are taken in blocks of 32 (two row vectors of 16), columns in tiles of 32. Lane r belongs to row r.

codes   [row block][tile][row vector][plane][packed vector][64 bytes]. Four neighbouring columns of 16 rows make one
        vector of 64 codes, row by row; a tile has 8 of them. b bits are split into planes of 4, 2 and 1 bits (8 is one
        plane), low bits first; a plane of w bits packs 8/w vectors, lowest bits first, into one vector of 64 bytes.
scales  Those of groups lie between the codes, before the tiles that they are for, so that a block of rows is read as
        one stream (from memory a CPU reads one a quarter faster than two): [row block][span]([group][32] in the scale
        dtype, then offsets alike, if there are any, then the span's tiles). A span is one group of whole tiles, or one
        tile with two groups of 16, the last of which may be padding, all 0.
        Others follow the codes: of rows and tensors [row block][32], offsets alike; of base 3 [row block][group][32].
        Two-level scales are [row block][super-group][32]; their codes, [row block][group][32] bytes, precede the zeros.
zeros   [row block][group][32] bytes; where codes have at most 4 bits two groups share a byte, the even one low.
order   [columns of whole tiles] int32, where columns have an order of their own: which one is stored at every place.
floats  [row block][column][32].

base 3  [row block][five tiles][row vector][vector][64 bytes]. Byte b of vector v has five codes: those at place b in
        vector v of the five tiles. So a tile of 8 vectors reads 8 vectors, and takes the same digit from all bytes.
        The last five of a row may be padding.

So a kernel that computes a block of rows reads every part in order.

A byte of base 3 is a fraction: with the codes d0…d4 and n = 81 d0 + 27 d1 + 9 d2 + 3 d3 + d4 it lies, in 1/256, between
n / 243 and (n + 1) / 243, so that digit i is the whole part of 3 times the fraction of 3**i times it: no division.

The families differ in one thing. On arm64, which multiplies signed by signed, codes that are not indices of a codebook
are stored less half their range, as two's complement (base 3: as they are). All else fits both: four columns of four
rows are what `sdot` takes by lane, without the pairwise sums that eight columns of two rows would need, and `smmla` has
these by one shuffle, which many tokens share.

The rows of the last block that do not exist have scale 0 (floats: 0), so that they come out as 0.
Layout version: `LAYOUT_VERSION`; raise it with every change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smc.errors import InputError
from smc.ir import EncodedTensor, Encoding, matrix_shape
from smc.ir.encoding import FLOAT_BYTES

if TYPE_CHECKING:
    import torch

LAYOUT_VERSION = 4
ROW_VECTOR = 16
ROW_BLOCK = 32
TILE = 32
FIVE = 5
"""Tiles that share the bytes of base-3 codes."""
ALIGNMENT = 64


def padded(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


def planes(bits: int) -> tuple[int, ...]:
    """How codes of that many bits are split: widths of the planes, low bits first."""
    return (8,) if bits == 8 else tuple(width for width in (4, 2, 1) if bits & width)


@dataclass(frozen=True)
class Span:
    """Tiles with the scales that lie before them; sizes for a block of rows.

    tiles: how many share a group; the last span of a row may have fewer. groups: of a span.
    scale_bytes: of the scales (and offsets). tile_bytes: codes of a tile.
    """

    tiles: int
    groups: int
    scale_bytes: int
    tile_bytes: int

    @property
    def total_bytes(self) -> int:
        """Of a span with all its tiles."""
        return self.scale_bytes + self.tiles * self.tile_bytes


def span_of(encoding: Encoding) -> Span | None:
    """How scales lie between the codes; None where they have a place of their own."""
    group = encoding.group
    if encoding.storage != "packed" or not isinstance(group, int) or encoding.super_group is not None:
        return None
    groups = max(1, TILE // group)
    scale_bytes = groups * (1 + encoding.offset) * ROW_BLOCK * FLOAT_BYTES[encoding.scale_dtype]
    return Span(max(1, group // TILE), groups, scale_bytes, ROW_BLOCK * TILE * encoding.bits // 8)


@dataclass(frozen=True)
class MatrixLayout:
    """Sizes and places of one packed matrix [rows, columns]; offsets in bytes from its begin, each 64-byte aligned."""

    encoding: Encoding
    rows: int
    columns: int

    @property
    def padded_rows(self) -> int:
        """Rows with those that fill the last block."""
        return padded(self.rows, ROW_BLOCK)

    @property
    def tiles(self) -> int:
        """Tiles of a row."""
        return -(-self.columns // TILE)

    @property
    def groups(self) -> int:
        """Stored groups of a row: those of whole tiles."""
        return self.encoding.groups(self.tiles * TILE)

    @property
    def codes_bytes(self) -> int:
        """Bytes of the codes or floats, and of the scales between them."""
        if self.encoding.is_float:
            return self.padded_rows * self.columns * self.encoding.bits // 8
        if self.encoding.storage == "base3":
            return self.padded_rows * TILE * -(-self.tiles // FIVE)
        size = self.padded_rows * self.tiles * TILE * self.encoding.bits // 8
        if span := span_of(self.encoding):
            size += self.padded_rows // ROW_BLOCK * -(-self.tiles // span.tiles) * span.scale_bytes
        return size

    @property
    def scales_offset(self) -> int:
        """Where scales begin: after the codes, or where these begin if scales lie between them."""
        return 0 if span_of(self.encoding) else padded(self.codes_bytes, ALIGNMENT)

    @property
    def scales_bytes(self) -> int:
        """Bytes of scales, and of offsets behind them, that have a place of their own."""
        if self.encoding.is_float or span_of(self.encoding):
            return 0
        size = FLOAT_BYTES[self.encoding.scale_dtype]
        return self.padded_rows * (self.super_groups + self.groups * self.encoding.offset) * size

    @property
    def super_groups(self) -> int:
        """Stored scales of a row: one a group, or fewer where they have two levels."""
        return -(-self.groups // (self.encoding.super_group or 1))

    @property
    def zeros_offset(self) -> int:
        """Where codes of scales and stored zeros begin (after the scales)."""
        return padded(max(self.codes_bytes, self.scales_offset + self.scales_bytes), ALIGNMENT)

    @property
    def zeros_bytes(self) -> int:
        """Bytes of the codes of scales and of the stored zeros."""
        size = 0 if self.encoding.super_group is None else self.groups
        if self.encoding.zero == "group":
            size += -(-self.groups // 2) if self.encoding.zero_bits == 4 else self.groups
        return self.padded_rows * size

    @property
    def order_offset(self) -> int:
        """Where the order of permuted columns begins (after the zeros)."""
        return padded(self.zeros_offset + self.zeros_bytes, ALIGNMENT)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole matrix, a multiple of 64."""
        return padded(self.order_offset + 4 * self.tiles * TILE * self.encoding.permuted, ALIGNMENT)


def check_packable(encoding: Encoding, columns: int = 0) -> None:
    """InputError where there is no packed layout, and so no kernel, for an encoding of rows of so many columns."""
    reason = None
    if encoding.is_float:
        return
    inputs, group = encoding.activation_group, encoding.group
    if encoding.rotation and columns % encoding.rotation:
        reason = f"a rotation in blocks of {encoding.rotation} that do not divide {columns} columns"
    elif encoding.super_group is not None and not isinstance(group, int):
        reason = f"two-level scales with one scale a {group}"
    elif isinstance(encoding.group, int) and encoding.group != 16 and encoding.group % TILE:
        reason = f"groups of {encoding.group} (16 or a multiple of 32)"
    elif encoding.activation == "i8" and isinstance(inputs, int):
        if inputs % TILE:
            reason = f"activation groups of {inputs} (a multiple of 32, or token)"
        elif isinstance(group, int) and group % inputs and inputs % group:
            reason = f"activation groups of {inputs} that cut groups of {group}"
    if reason:
        raise InputError(f"there is no kernel yet for encoding {encoding}: {reason}")


def stored_bias(encoding: Encoding, family: str) -> int:
    """What is subtracted from codes before they are stored."""
    plain = encoding.levels is None and encoding.storage == "packed"
    return 1 << (encoding.bits - 1) if family == "arm64" and plain else 0


def pack_matrix(tensor: EncodedTensor, family: str) -> np.ndarray:
    """The packed bytes (uint8) of a matrix in its encoding, for a target family."""
    encoding = tensor.encoding
    rows, columns = matrix_shape(tensor.shape)
    check_packable(encoding, columns)
    layout = MatrixLayout(encoding, rows, columns)
    out = np.zeros(layout.total_bytes, np.uint8)
    if encoding.is_float:
        assert tensor.values is not None
        out[: layout.codes_bytes] = _pack_floats(tensor.values.reshape(rows, columns), layout)
        return out
    assert tensor.codes is not None
    codes = tensor.codes.reshape(rows, -1).numpy()[:, : layout.tiles * TILE]
    packed = _pack_codes(codes ^ stored_bias(encoding, family), layout)
    assert tensor.scales is not None
    # One scale for everything is repeated in every row.
    scales = [_pack_scales(tensor.scales.expand(rows, -1), layout, layout.super_groups)]
    if encoding.offset:
        assert tensor.offsets is not None
        scales.append(_pack_scales(tensor.offsets, layout, layout.groups))
    if span := span_of(encoding):
        packed = _interleave(packed, scales, span, layout)
    else:
        out[layout.scales_offset : layout.scales_offset + layout.scales_bytes] = np.concatenate(scales)
    out[: layout.codes_bytes] = packed
    parts = []
    if tensor.scale_codes is not None:
        parts.append(_pack_bytes(tensor.scale_codes.numpy(), layout))
    if tensor.zeros is not None:
        parts.append(_pack_zeros(tensor.zeros.numpy(), layout))
    if parts:
        out[layout.zeros_offset : layout.zeros_offset + layout.zeros_bytes] = np.concatenate(parts)
    if tensor.order is not None:
        order = np.arange(layout.tiles * TILE, dtype=np.int32)  # padding stays where it is
        order[:columns] = tensor.order.numpy()
        out[layout.order_offset :][: order.nbytes] = order.view(np.uint8)
    return out


def _row_blocks(array: np.ndarray, layout: MatrixLayout, width: int) -> np.ndarray:
    """[rows, x] → [row blocks, width, 32], missing rows and columns 0."""
    full = np.zeros((layout.padded_rows, width), array.dtype)
    full[: layout.rows, : array.shape[1]] = array
    return full.reshape(layout.padded_rows // ROW_BLOCK, ROW_BLOCK, width).transpose(0, 2, 1)


def _pack_floats(values: torch.Tensor, layout: MatrixLayout) -> np.ndarray:
    import torch

    bits = values.contiguous().view(torch.int32 if layout.encoding.storage == "f32" else torch.int16).numpy()
    return np.ascontiguousarray(_row_blocks(bits, layout, layout.columns)).view(np.uint8).reshape(-1)


def _pack_codes(codes: np.ndarray, layout: MatrixLayout) -> np.ndarray:
    full = np.zeros((layout.padded_rows, layout.tiles * TILE), np.uint8)
    full[: layout.rows, : codes.shape[1]] = codes
    # [row vector, row, tile, quad, column of quad] → [row vector, tile, quad, row, column]
    vectors = full.reshape(-1, ROW_VECTOR, layout.tiles, TILE // 4, 4).transpose(0, 2, 3, 1, 4)
    vectors = np.ascontiguousarray(vectors).reshape(-1, layout.tiles, TILE // 4, 4 * ROW_VECTOR)
    if layout.encoding.storage == "base3":
        return _by_blocks(_base3_cells(vectors))
    packed, low = [], 0
    for width in planes(layout.encoding.bits):
        plane = (vectors >> low) & ((1 << width) - 1) if width < 8 else vectors
        plane = plane.reshape(*plane.shape[:2], width, 8 // width, 4 * ROW_VECTOR)
        word = plane[:, :, :, 0]
        for place in range(1, 8 // width):
            word = word | (plane[:, :, :, place] << (place * width))
        packed.append(word)
        low += width
    return _by_blocks(np.concatenate(packed, axis=2))


def _by_blocks(cells: np.ndarray) -> np.ndarray:
    """[row vector, tile or five tiles, packed vector, 64] → [row block, tile, row vector, packed vector, 64]."""
    blocks = cells.reshape(-1, ROW_BLOCK // ROW_VECTOR, *cells.shape[1:])
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3, 4)).reshape(-1)


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

    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[layout.encoding.scale_dtype]
    bits = scales.to(dtype).contiguous().view(torch.int32 if dtype == torch.float32 else torch.int16).numpy()
    return np.ascontiguousarray(_row_blocks(bits, layout, count)).view(np.uint8).reshape(-1)


def _interleave(codes: np.ndarray, parts: Sequence[np.ndarray], span: Span, layout: MatrixLayout) -> np.ndarray:
    """Bytes of codes, and of scales and offsets, in the order [row block][span](scales, offsets, tiles)."""
    blocks, spans = layout.padded_rows // ROW_BLOCK, -(-layout.tiles // span.tiles)
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
