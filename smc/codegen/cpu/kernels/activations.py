"""The layout of int8 activations: row kernels write them (sink.py), matmuls read them.

A tile is 32 columns; a row has stride / 32 of them, each with a scale and one or two sums (of 16 or 32 codes). On x86
rows follow each other: codes [token][tile][32], scales [token][tile], sums [token][sum].

On arm64 the tokens of a step that fill blocks of 8 are interleaved, so that a kernel reads a block's tile through one
pointer: codes [block][tile][token][32], scales [block][tile][token], sums [block][sum][token]. Where the dot product
takes two tokens by 8 columns, a block's tile is [pair][8 columns][token of the pair][8]. The tokens left over lie as on
x86, behind the blocks. Scales of whole tokens are always [token].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Kernel, Pointer, broadcast, cast, const, lanes_of, shuffle
from smc.codegen.cpu.isa import isa
from smc.codegen.kernels.abi import TOKEN_BLOCK
from smc.codegen.kernels.layout import QUADS, TILE
from smc.targets import CpuLevel


def is_blocked(level: CpuLevel) -> bool:
    """Whether a level's activations are interleaved."""
    return isa(level).interleaves_tokens


def has_pairs(level: CpuLevel) -> bool:
    """Whether pairs of tokens are interleaved by 8 columns."""
    return isa(level).interleaves_pairs


@dataclass(frozen=True)
class Destination:
    """Where one token's codes, scales and sums are written: element indices, int64."""

    codes: Expr
    tile_step: Expr
    chunk_step: Expr
    scales: Expr
    sums: Expr
    step: Expr

    def code(self, tile: Expr, chunk: int) -> Expr:
        """The index of the 8 columns `chunk` of a tile."""
        return self.codes + tile * self.tile_step + chunk * self.chunk_step

    def scale(self, tile: Expr) -> Expr:
        """The index of a tile's scale."""
        return self.scales + tile * self.step

    def sum(self, index: Expr) -> Expr:
        """The index of the row's sum number `index`."""
        return self.sums + index * self.step


def destination(kernel: Kernel, level: CpuLevel, tokens: Expr, token: Expr, stride: Expr, sums: int) -> Destination:
    """Where a token (int64) of a step of `tokens` (int32) is written; stride: columns of a row, sums: of a tile."""

    def number(value: int) -> Expr:
        return const(value, "int64")

    tiles = stride >> number(5)
    plain = Destination(token * stride, number(TILE), number(8), token * tiles, token * tiles * number(sums), number(1))
    if not is_blocked(level):
        return plain
    place = token & number(TOKEN_BLOCK - 1)
    first = token - place
    blocked = token < (cast(tokens, "int64") & number(-TOKEN_BLOCK))
    within = place * TILE
    if has_pairs(level):
        within = (place >> number(1)) * (2 * TILE) + (place & number(1)) * 8

    def choose(interleaved: Expr, alone: Expr) -> Expr:
        return kernel.let(tirx.Select(blocked, interleaved, alone), "place")

    return Destination(
        choose(first * stride + within, plain.codes),
        choose(number(TOKEN_BLOCK * TILE), plain.tile_step),
        choose(number(16), plain.chunk_step) if has_pairs(level) else plain.chunk_step,
        choose(first * tiles + place, plain.scales),
        choose(first * tiles * sums + place, plain.sums),
        choose(number(TOKEN_BLOCK), plain.step),
    )


@dataclass(frozen=True)
class PerToken:
    """A number for every token of a register tile: scalars, or vectors of four tokens each."""

    values: Sequence[Expr]

    def spread(self, tokens: Sequence[int]) -> Expr:
        """A vector whose lanes are the numbers of these tokens. Scalars allow one token only."""
        width = lanes_of(self.values[0])
        if width == 1:
            assert len(set(tokens)) == 1
            return broadcast(self.values[tokens[0]], len(tokens))
        return shuffle(self.values[tokens[0] // width], [token % width for token in tokens])


@dataclass(frozen=True)
class SpreadPerToken(PerToken):
    """A vector for every token of a register tile, all lanes of which are its number."""

    def spread(self, tokens: Sequence[int]) -> Expr:
        """See `PerToken.spread`."""
        assert len(set(tokens)) == 1
        return self.values[tokens[0]]


@dataclass(frozen=True)
class Inputs:
    """The activations that a linear kernel reads.

    codes: int8, four columns of a row in an int32; float32 columns where inputs are floats, which have no scales and
    sums. scales: float32; sums: int32; stride: columns of a row (int32).
    """

    codes: Pointer
    scales: Pointer
    sums: Pointer
    stride: Expr


class Source:
    """Reads the tokens token…token+count of a step: a single one, or full blocks of them if rows are interleaved."""

    def __init__(self, kernel: Kernel, level: CpuLevel, inputs: Inputs, token: Expr, count: int) -> None:
        k = self.kernel = kernel
        self.inputs = inputs
        self.blocked = is_blocked(level) and count > 1
        assert not self.blocked or count % TOKEN_BLOCK == 0
        self.pairs = has_pairs(level) and self.blocked
        self.count = count
        self.tiles = k.let(cast(inputs.stride >> const(5, "int32"), "int64"), "x_tiles")
        # Where rows, or blocks of them, begin, in tiles.
        step = TOKEN_BLOCK if self.blocked else 1
        self.rows = [k.let((token + first) * self.tiles, "row") for first in range(0, count, step)]

    def codes(self, tile: Expr) -> list[Expr]:
        """For every token, where its codes of a tile begin, in int32 elements; those of a pair begin together."""
        if not self.blocked:
            return [self.kernel.let((row + tile) * QUADS, "input") for row in self.rows]
        begins = [self.kernel.let((row + tile * TOKEN_BLOCK) * QUADS, "input") for row in self.rows]
        places = [m - m % 2 if self.pairs else m for m in range(self.count)]
        return [begins[m // TOKEN_BLOCK] + m % TOKEN_BLOCK * QUADS for m in places]

    def scales(self, tile: Expr) -> PerToken:
        """float32: the scale of a tile, for every token."""
        return self._per_token(self.inputs.scales, tile)

    def sums(self, index: Expr, per_tile: int) -> PerToken:
        """int32: the row's sum number `index`, for every token; a tile has `per_tile` of them."""
        return self._per_token(self.inputs.sums, index, per_tile)

    def zeros(self) -> list[Expr]:
        """int32 zeros in the shape of the values of `sums`."""
        return [const(0, "int32x4")] * (self.count // 4) if self.blocked else [const(0, "int32")] * self.count

    def _per_token(self, pointer: Pointer, index: Expr, per_tile: int = 1) -> PerToken:
        k = self.kernel
        if not self.blocked:
            return PerToken([k.let(pointer.load(row * per_tile + index), "per_token") for row in self.rows])
        begins = [k.let(row * per_tile + index * TOKEN_BLOCK, "begin") for row in self.rows]
        return PerToken([k.let(pointer.load(b + half, 4), "per_token") for b in begins for half in (0, 4)])
