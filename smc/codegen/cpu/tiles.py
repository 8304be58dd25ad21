"""The matmul kernel's search space: how much of the result it keeps in registers at once, and where many tokens find
unpacked weights. Needs no tvm."""

from __future__ import annotations

from dataclasses import replace

from smc.codegen.cpu.isa import has_few_registers, isa
from smc.codegen.kernels.layout import ROW_BLOCK, TILE, planes
from smc.codegen.kernels.specs import LinearKernel, Tile
from smc.ir import Encoding, ceil_div
from smc.targets import CpuLevel

PANEL_TILES = 8
"""Tiles of a panel: 8 KiB of codes, which the first cache holds beside inputs and sums."""


def panel_tiles(encoding: Encoding, level: CpuLevel) -> int | None:
    """Of how many tiles a panel is, whole groups of weights and of inputs; None if there can be none."""
    if isa(level).is_vector_by_lane or not encoding.rounds_inputs:
        return None
    sizes = [size for size in (encoding.scales.group, encoding.input_group) if isinstance(size, int)]
    span = ceil_div(max(sizes, default=TILE), TILE)
    return span * max(1, PANEL_TILES // span) if span <= 2 * PANEL_TILES else None


def _unpacks_slowly(encoding: Encoding, level: CpuLevel) -> bool:
    """Whether many tokens had better find weights unpacked, as measured on Zen 4."""
    if encoding.is_base3:
        return True
    # Zeros of 8-bit codes are not subtracted beforehand.
    zeros = encoding.stores_zeros and encoding.bits < 8
    if has_few_registers(level):  # which unpacking needs, too
        if zeros or len(planes(encoding.bits)) > 1:
            return True
        if isa(level).has_byte_dot and encoding.bits == 2 and not encoding.has_codebook:
            return False  # a load brings codes of four columns
        return encoding.bits < 8 or encoding.has_codebook or isa(level).sums_in_int16
    every_tile = isinstance(encoding.scales.group, int) and encoding.scales.group <= TILE
    return (zeros and every_tile) or len(encoding.entries) > 16


def _panel_tile(encoding: Encoding, level: CpuLevel) -> Tile:
    """How many rows of a panel are multiplied by how many tokens at once, as measured on Zen 4."""
    if (
        has_few_registers(level)
        and not encoding.is_base3
        and not encoding.has_codebook
        and len(planes(encoding.bits)) == 1
    ):
        if encoding.scales.group == 16 and isa(level).has_byte_dot:
            return Tile(2, 2 * level.lanes, panel=True)  # sums, and those of an input scale, in registers
        # Codes of 8 bits have signs beside them there, and zeros are not subtracted beforehand: loads for every row.
        by_row = isa(level).sums_in_int16 and (encoding.bits == 8 or encoding.stores_zeros)
        if not by_row:
            return Tile(2, ROW_BLOCK, panel=True)  # half the pointers to inputs, of which 16 registers spill some
    # Unpacking takes long for the tokens of a batch, too, that are too few for a panel.
    return Tile(4, 2 * level.lanes, panel=True)


def default_tile(encoding: Encoding, level: CpuLevel) -> Tile:
    """A tile that fits the registers: accumulators for every token and unit, two where groups have sums."""
    if panel_tiles(encoding, level) and _unpacks_slowly(encoding, level):
        return _panel_tile(encoding, level)
    if isa(level).interleaves_tokens:
        if encoding.rounds_inputs:
            # LLVM unrolls loops of 8 turns for cores that work in order, and then spills: 6 blocks of tokens for these.
            return Tile(64 if isa(level).interleaves_pairs else 48, 4)
        return Tile(4, 16) if encoding.is_float else Tile(4, 8)
    # Unpacking may take longer than multiplying: then more tokens share it.
    integers = encoding.rounds_inputs
    if has_few_registers(level):
        # Accumulators, used once per group, wait in the first cache where sums need the registers.
        slow = encoding.has_codebook or (encoding.is_base3 and integers)
        return Tile(6, 16) if encoding.is_float or slow else Tile(4, 16)
    if encoding.is_float:
        return Tile(8, 32)
    if not integers:
        return Tile(8, 16)
    if encoding.is_base3 or len(encoding.entries) > 16:
        return Tile(8, 16)
    if encoding.has_row_scale and encoding.input_group == "token":
        return Tile(3, 32)  # 98 % of the products that Zen 4 can start; with 4 tokens 95 %
    # A panel would keep much of the first cache, which a neighbour of the core may need.
    shared = len(planes(encoding.bits)) > 1 or (encoding.stores_zeros and encoding.bits < 8)
    return Tile(6 if shared and not encoding.has_partial_sums else 4, 32)


def candidate_tiles(encoding: Encoding, level: CpuLevel) -> list[Tile]:
    """What tuning tries, the default first: tiles with accumulators for a sixth to three quarters of the registers.

    The rest of the registers holds what is added up: fewer accumulators leave them idle, more are spilled.
    """
    default = default_tile(encoding, level)
    if isa(level).interleaves_tokens and encoding.rounds_inputs:
        return [default, *(Tile(tokens, rows) for tokens, rows in ((8, 4), (24, 4), (8, 8), (24, 8)))]
    tiles = [
        Tile(tokens, rows, panel)
        for panel in ([False, True] if panel_tiles(encoding, level) else [False])
        for rows in range(level.lanes, ROW_BLOCK + 1, level.lanes)
        for tokens in (1, 2, 3, 4, 6, 8, 12)
        if ROW_BLOCK % rows == 0 and level.registers / 6 <= tokens * rows / level.lanes <= level.registers * 3 / 4
    ]
    return [default, *(tile for tile in tiles if tile != default)]


def candidates(kernel: LinearKernel, level: CpuLevel) -> dict[str, LinearKernel]:
    """A kernel's search space by name, the default, which is the kernel itself, first."""
    default, *others = candidate_tiles(kernel.encoding, level)
    return {str(default): kernel, **{str(tile): replace(kernel, tile=tile) for tile in others}}
