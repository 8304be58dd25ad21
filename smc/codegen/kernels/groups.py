"""Groups: how many of a row's columns share a scale, a zero or an input sum, in tiles of 32."""

from __future__ import annotations

from smc.codegen.kernels.layout import QUADS, TILE
from smc.ir import Encoding, ceil_div


def sum_group(encoding: Encoding) -> int:
    """Over how many columns the input sums are taken that correct for zeros."""
    return 16 if encoding.scales.group == 16 else 32


def tiles_of_scales(encoding: Encoding) -> tuple[int | None, int | None]:
    """For how many tiles a scale of the weights and one of the inputs hold; None: for the whole row."""
    sizes = encoding.scales.group, encoding.input_group if encoding.rounds_inputs else None
    weights, inputs = (ceil_div(size, TILE) if isinstance(size, int) else None for size in sizes)
    return weights, inputs


def flushes_tiles(encoding: Encoding) -> bool:
    """Whether the sums of every tile, or half of one, leave at once: no scale holds for more columns."""
    return 1 in tiles_of_scales(encoding)


def piece_quads(encoding: Encoding, half: int) -> range:
    """The quads of a piece that is flushed at once: a tile, or in groups of 16 a half of one."""
    size = QUADS // 2 if encoding.scales.group == 16 else QUADS
    return range(half * size, (half + 1) * size)
