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
        Two-level scales are [row block][super-group][32], two-level minima alike behind them; their codes, [row
        block][group][32] bytes, those of minima behind those of scales, precede the zeros.
zeros   [row block][group][32] bytes; where codes have at most 4 bits two groups share a byte, the even one low.
order   [columns of whole tiles] int32, where columns have an order of their own: which one is stored at every place.
floats  [row block][column][32].

base 3  [row block][five tiles][row vector][vector][64 bytes]. Byte b of vector v has five codes: those at place b in
        vector v of the five tiles. So a tile of 8 vectors reads 8 vectors, and takes the same digit from all bytes.
        The last five of a row may be padding.

So a kernel that computes a block of rows reads every part in order.

A byte of base 3 is a fraction: with the codes d0…d4 and n = 81 d0 + 27 d1 + 9 d2 + 3 d3 + d4 it lies, in 1/256, between
n / 243 and (n + 1) / 243, so that digit i is the whole part of 3 times the fraction of 3**i times it: no division.

The families differ in one thing each. On arm64, which multiplies signed by signed, codes that are not indices of a
codebook are stored less half their range, as two's complement (base 3: as they are). All else fits both CPUs: four
columns of four rows are what `sdot` takes by lane, without the pairwise sums that eight columns of two rows would need,
and `smmla` has these by one shuffle, which many tokens share.
On GPUs, "cuda", a row's part of a tile lies together, so that a thread loads it at once: codes [row block][tile][plane]
[row][packed word], a word being a row's 4 bytes of a packed vector; base 3 [row block][five tiles][row][word].

The rows of the last block that do not exist have scale 0 (floats: 0), so that they come out as 0.
Layout version: `LAYOUT_VERSION`; raise it with every change.
"""

from __future__ import annotations

from dataclasses import dataclass

from smc.ir import Encoding, ceil_div
from smc.ir.encoding import FLOAT_BYTES

LAYOUT_VERSION = 5
ROW_VECTOR = 16
ROW_BLOCK = 32
TILE = 32
QUADS = TILE // 4
"""Vectors of a tile: each lane has four neighbouring columns of its row."""
FIVE = 5
"""Tiles that share the bytes of base-3 codes."""
ALIGNMENT = 64


def padded(count: int, multiple: int) -> int:
    """The next multiple."""
    return ceil_div(count, multiple) * multiple


def planes(bits: int) -> tuple[int, ...]:
    """How codes of that many bits are split: widths of the planes, low bits first."""
    return (8,) if bits == 8 else tuple(width for width in (4, 2, 1) if bits & width)


def stored_bias(encoding: Encoding, family: str) -> int:
    """What is subtracted from codes before they are stored."""
    plain = not encoding.has_codebook and encoding.is_packed
    return 1 << (encoding.bits - 1) if family == "arm64" and plain else 0


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
    """How scales lie between the codes; None if they have a place of their own."""
    group = encoding.scales.group
    if not encoding.is_packed or not isinstance(group, int) or encoding.scales.super_group is not None:
        return None
    groups = max(1, TILE // group)
    scale_bytes = groups * (1 + encoding.stores_minima) * ROW_BLOCK * FLOAT_BYTES[encoding.scales.dtype]
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
        return ceil_div(self.columns, TILE)

    @property
    def groups(self) -> int:
        """Stored groups of a row: those of whole tiles."""
        return self.encoding.groups(self.tiles * TILE)

    @property
    def codes_bytes(self) -> int:
        """Bytes of the codes or floats, and of the scales between them."""
        if self.encoding.is_float:
            return self.padded_rows * self.columns * self.encoding.bits // 8
        if self.encoding.is_base3:
            return self.padded_rows * TILE * ceil_div(self.tiles, FIVE)
        size = self.padded_rows * self.tiles * TILE * self.encoding.bits // 8
        if span := span_of(self.encoding):
            size += self.padded_rows // ROW_BLOCK * ceil_div(self.tiles, span.tiles) * span.scale_bytes
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
        size = FLOAT_BYTES[self.encoding.scales.dtype]
        return self.padded_rows * (self.super_groups + self.minima) * size

    @property
    def minima(self) -> int:
        """Stored float minima of a row."""
        if not self.encoding.stores_minima:
            return 0
        return self.super_groups if self.encoding.has_two_level_minima else self.groups

    @property
    def super_groups(self) -> int:
        """Stored scales of a row: one per group, or fewer where they have two levels."""
        return ceil_div(self.groups, self.encoding.scales.super_group or 1)

    @property
    def zeros_offset(self) -> int:
        """Where codes of scales and stored zeros begin (after the scales)."""
        return padded(max(self.codes_bytes, self.scales_offset + self.scales_bytes), ALIGNMENT)

    @property
    def zeros_bytes(self) -> int:
        """Bytes of the codes of scales and minima, and of the stored zeros."""
        size = 0 if self.encoding.scales.super_group is None else self.groups
        size += self.groups * self.encoding.has_two_level_minima
        if self.encoding.stores_zeros:
            size += ceil_div(self.groups, 2) if self.encoding.zero_bits == 4 else self.groups
        return self.padded_rows * size

    @property
    def order_offset(self) -> int:
        """Where the order of permuted columns begins (after the zeros)."""
        return padded(self.zeros_offset + self.zeros_bytes, ALIGNMENT)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole matrix, a multiple of 64."""
        return padded(self.order_offset + 4 * self.tiles * TILE * self.encoding.transform.permuted, ALIGNMENT)
