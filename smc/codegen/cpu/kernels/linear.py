"""The matmul: out[token, row] = Σ x[token, column] · weight[row, column], for any encoding on any level.

This is its frame: parameters, loops over row blocks, rows and tokens. weights.py reads the weights; integer_products.py
and float_products.py multiply and scale; epilogue.py stores the results. For many tokens, weights are unpacked once for
all of them: many_tokens.py on x86, token_blocks.py on arm64.

Reduction order, the same for every tile and level: groups of columns one after the other along a row, each group's
integer dot exact, then one float32 fma per group (docs/numerics.md).
"""

from __future__ import annotations

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Kernel, cast, const
from smc.codegen.cpu.isa import isa
from smc.codegen.cpu.kernels.activations import Inputs, Source, is_blocked
from smc.codegen.cpu.kernels.dot import Dot, InPlaceDot, dot_for
from smc.codegen.cpu.kernels.epilogue import Epilogue
from smc.codegen.cpu.kernels.float_products import FloatProducts
from smc.codegen.cpu.kernels.integer_products import IntegerProducts
from smc.codegen.cpu.kernels.many_tokens import ManyTokens
from smc.codegen.cpu.kernels.token_blocks import TokenBlocks, has_stationary_codes
from smc.codegen.cpu.kernels.unpack import in_place, storage_dtype
from smc.codegen.cpu.kernels.weights import BeforeTile, PackedMatrix, PackedWeights, RowTile, row_tile
from smc.codegen.cpu.tiles import default_tile
from smc.codegen.kernels.abi import COMPACT, TOKEN_BLOCK
from smc.codegen.kernels.groups import flushes_tiles
from smc.codegen.kernels.layout import ROW_BLOCK
from smc.codegen.kernels.specs import LinearKernel
from smc.targets import CpuLevel

PREFETCH_TURNS = 4
"""With this many tiles of tokens or more, the next block's weights are prefetched while one is multiplied: else its
first tile would wait for them. Each of the first turns prefetches a share, tile by tile: prefetches at once would wait
for each other. With fewer tokens weights are read as a stream: some CPUs prefetch it well themselves,
others read half as fast again where each tile is prefetched so many bytes before its use (the engine's cpu.c)."""


def linear_kernel(name: str, spec: LinearKernel, level: CpuLevel) -> Kernel:
    """Computes the row blocks begin…end (of 32 rows) for all tokens.

    x: float32 [tokens, x_stride], or int8 codes with
    scales and sums (activations.py). codes, scales, zeros: the packed matrix (kernels/layout.py; codes of two-level
    scales are before the zeros). bias: float32 [rows, padded], read if flags say so.
    prefetch_distance: in bytes; 0: the CPU prefetches better by itself.
    out: float32 [tokens, out_stride], or if flags say so [tokens, rows of the blocks begin…end]; padding rows come out
    as 0 (plus bias).

    argmax: the result is not written but compared, a row i with what the lane i % 16 has in out [tokens, 32]: the
    largest results up to now, float32 [16], and their rows, int32 [16], the lower one among equals. out_stride: how
    many rows count; those behind are padding.
    """
    return _Linear(name, spec, level).build()


class _Linear:
    def __init__(self, name: str, spec: LinearKernel, level: CpuLevel) -> None:
        encoding, argmax = self.encoding, self.argmax = spec.encoding, spec.argmax
        self.level, self.tile = level, spec.tile or default_tile(encoding, level)
        self.integer = encoding.rounds_inputs
        k = self.k = Kernel(name, spec.signature(), matmul=True)
        x = k.pointer("x", "int32" if self.integer else "float32")
        x_scales, x_sums = k.pointer("x_scales"), k.pointer("x_sums")
        codes = k.pointer("codes", storage_dtype(encoding.float_dtype) if encoding.is_float else "uint8")
        scales, zeros = k.pointer("scales", storage_dtype(encoding.scales.dtype)), k.pointer("zeros")
        bias, out = k.pointer("bias"), k.pointer("out", "float32")
        self.tokens, self.columns = k.scalar("tokens"), k.scalar("columns")
        x_stride, out_stride, flags = k.scalar("x_stride"), k.scalar("out_stride"), k.scalar("flags")
        self.ahead = k.scalar("prefetch_distance")
        self.begin, self.end = k.scalar("begin"), k.scalar("end")
        self.inputs = Inputs(x, x_scales, x_sums, x_stride)
        # A row of the result is as long as the matrix has padded rows.
        rows = (out_stride + (ROW_BLOCK - 1)) // ROW_BLOCK * ROW_BLOCK if argmax else out_stride
        self.matrix = PackedMatrix(k, encoding, level, (codes, scales, zeros), self.columns, rows)
        compact = (flags & const(COMPACT, "int32")) != const(0, "int32")
        blocks, zero = cast(self.end - self.begin, "int64"), const(0, "int64")
        out_row = k.let(tirx.Select(compact, blocks * ROW_BLOCK, self.matrix.rows), "out_row")
        out_first = k.let(tirx.Select(compact, cast(self.begin, "int64") * ROW_BLOCK, zero), "out_first")
        argmax_rows = out_stride if argmax else None
        self.epilogue = Epilogue(self.matrix, self.inputs, flags, bias, out, out_row, out_first, argmax_rows)

    def build(self) -> Kernel:
        k, ways = self.k, (self.matrix, self.inputs, self.epilogue, self.tile)
        with k.loop(self.end - self.begin, "block", begin=self.begin) as block:
            first = k.let(cast(block, "int64") * ROW_BLOCK, "first")
            done = ManyTokens(*ways).multiply(first, self.tokens) if self.tile.panel else const(0, "int32")
            for step in self._steps():
                count = k.let((self.tokens - done) // const(step, "int32"), "count")
                if step == TOKEN_BLOCK and has_stationary_codes(self.encoding, self.level):
                    TokenBlocks(*ways).multiply(first, count)
                else:
                    rows = self.tile.rows if step > 1 else ROW_BLOCK
                    with k.loop(const(ROW_BLOCK // rows, "int64"), "pass") as index, k.loop(count, "token_tile") as t:
                        token = k.let(cast(done + t * step, "int64"), "token")
                        before_tile = None
                        ahead = None if isa(self.level).is_vector_by_lane else self.ahead
                        if self._prefetches(step):
                            many = count >= const(PREFETCH_TURNS, "int32")
                            before_tile = self._prefetch(block, t, many)
                            ahead = k.let(tirx.Select(many, const(0, "int32"), self.ahead), "ahead")
                        tile = row_tile(k, self.level, first, index * rows, rows)
                        self._multiply(tile, token, step, ahead, before_tile)
                done = k.let(done + count * step, "done")
        return k

    def _steps(self) -> list[int]:
        """The numbers of tokens per pass: first the full number, then smaller ones for the rest. Interleaved blocks of
        tokens must not be split."""
        step = self.tile.tokens
        if is_blocked(self.level):
            return sorted({TOKEN_BLOCK if self.integer else step, 1}, reverse=True)
        # A third of a tile: one token alone takes almost as long as two.
        return sorted({step, max(1, step // 3), 1}, reverse=True)

    def _prefetches(self, step: int) -> bool:
        """Whether a step of this size can have PREFETCH_TURNS turns: the rest behind a panel or larger tiles has
        fewer."""
        whole = step == self.tile.tokens > 1 and not self.tile.panel
        return whole and self.integer and not isa(self.level).is_vector_by_lane

    def _prefetch(self, block: Expr, turn: Expr, many: Expr) -> BeforeTile:
        """Prefetches this turn's share of the next block's tiles (int32), if there are many turns."""
        k, turns = self.k, const(PREFETCH_TURNS - 1, "int64")

        def before_tile(tile: Expr) -> None:
            with k.when(tirx.And(many, cast(tile & turns, "int32") == turn)):
                self.matrix.prefetch_tile(block, tile)

        return before_tile

    def _multiply(
        self, rows: RowTile, token: Expr, count: int, ahead: Expr | None, before_tile: BeforeTile | None
    ) -> None:
        """`count` tokens from `token` on by a row tile, whose sums are in registers; codes are prefetched `ahead` bytes
        before their use."""
        k, zero = self.k, const(0.0, f"float32x{self.level.lanes}")
        tokens = [token + m for m in range(count)]
        accumulators = [[k.register(zero, "acc") for _ in rows.units] for _ in range(count)]
        weights = PackedWeights(self.matrix, rows, ahead=ahead, before_tile=before_tile)
        if count > 1 and not self.argmax and not is_blocked(self.level):
            self.epilogue.prefetch(rows, tokens)
        dot = None
        if self.integer:
            dot = self._dot(weights, count)
            source = Source(k, self.level, self.inputs, token, count)
            IntegerProducts(weights, dot, source, accumulators).add(const(0, "int64"), self.matrix.tiles)
        elif self.encoding.is_float:
            FloatProducts(weights, self.inputs, tokens, accumulators).add_floats(self.columns)
        else:
            FloatProducts(weights, self.inputs, tokens, accumulators).add_codes()
        self.epilogue.finish(rows, tokens, accumulators, dot)

    def _dot(self, weights: PackedWeights, count: int) -> Dot:
        """How so many tokens are multiplied."""
        place = in_place(self.encoding, self.level, not flushes_tiles(self.encoding)) if count == 1 else None
        if place is not None:
            return InPlaceDot(self.k, self.level, weights.form, place)
        return dot_for(self.k, self.level, weights.form, count)
