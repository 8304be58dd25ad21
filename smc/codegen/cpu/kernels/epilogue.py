"""Epilogue: what becomes of a matmul's finished sums - scales of whole rows and tokens, bias, residual, the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Pointer, Register, broadcast, cast, const, reinterpret, rounded_product
from smc.codegen.cpu.kernels.activations import Inputs
from smc.codegen.cpu.kernels.dot import Dot
from smc.codegen.cpu.kernels.weights import PackedMatrix, RowTile
from smc.codegen.kernels.abi import ACCUMULATE, HAS_BIAS
from smc.codegen.kernels.layout import ROW_VECTOR


@dataclass(frozen=True)
class Epilogue:
    """Turns sums of products into the kernel's result.

    flags, bias, out: the kernel's parameters (linear.py). out_row, out_first: how many floats of `out` a token has,
    and which of the matrix's rows is the first there (int64).
    argmax_rows: int32, how many rows count, if only each token's largest results are kept; None if all results are
    stored.
    """

    matrix: PackedMatrix
    inputs: Inputs
    flags: Expr
    bias: Pointer
    out: Pointer
    out_row: Expr
    out_first: Expr
    argmax_rows: Expr | None

    def prefetch(self, rows: RowTile, tokens: Sequence[Expr]) -> None:
        """Prefetch the memory of the results: other threads wrote there last, and a residual is read from it."""
        for unit in rows.units:
            if unit.offset % ROW_VECTOR == 0:
                for token in tokens:
                    first = rows.row + unit.vector * ROW_VECTOR - self.out_first
                    self.matrix.kernel.prefetch(self.out, token * self.out_row + first)

    def finish(
        self, rows: RowTile, tokens: Sequence[Expr], accumulators: Sequence[Sequence[Register]], dot: Dot | None
    ) -> None:
        """Sums float32 [token][unit], in the form of `dot` where inputs are int8, to `out`."""
        k, lanes, encoding = self.matrix.kernel, self.matrix.level.lanes, self.matrix.encoding
        token_scale = encoding.rounds_inputs and encoding.input_group == "token"
        for u, unit in enumerate(rows.units):
            place = k.let(rows.row + unit.offset, "row")
            to = k.let(place - self.out_first, "to")
            scale = self.matrix.scale(rows, unit, const(0, "int64")) if encoding.has_row_scale else None
            sums = [registers[u].value for registers in accumulators]
            results = [k.register(v, "result") for v in (dot.finish(sums) if dot else sums)]
            for result, token in zip(results, tokens, strict=True):
                if scale is not None:
                    k.set(result, rounded_product(result.value, scale))
                if token_scale:
                    spread = broadcast(self.inputs.scales.load(token), lanes)
                    k.set(result, rounded_product(result.value, spread))
            with k.when((self.flags & const(HAS_BIAS, "int32")) != const(0, "int32")):
                bias = k.let(self.bias.load(place, lanes), "bias")
                for result in results:
                    k.set(result, result.value + bias)
            if self.argmax_rows is not None:
                self._keep_largest([result.value for result in results], tokens, place, self.argmax_rows)
                continue
            with k.when((self.flags & const(ACCUMULATE, "int32")) != const(0, "int32")):
                for result, token in zip(results, tokens, strict=True):
                    k.set(result, self.out.load(token * self.out_row + to, lanes) + result.value)
            for result, token in zip(results, tokens, strict=True):
                k.store(self.out, token * self.out_row + to, result.value)

    def _keep_largest(self, results: list[Expr], tokens: Sequence[Expr], place: Expr, count: Expr) -> None:
        """Compare each token's results of a unit with the largest ones of earlier blocks; the first `count` rows
        count."""
        k, lanes = self.matrix.kernel, self.matrix.level.lanes
        first = k.let(cast(place, "int32"), "first")
        rows = tirx.Ramp(first, const(1, "int32"), lanes)
        lane = k.let(place & const(ROW_VECTOR - 1, "int64"), "lane")
        nothing = const(float("-inf"), f"float32x{lanes}")
        for result, token in zip(results, tokens, strict=True):
            start = k.let(token * (2 * ROW_VECTOR) + lane, "start")
            largest = k.let(self.out.load(start, lanes), "largest")
            owner = k.let(reinterpret(self.out.load(start + ROW_VECTOR, lanes), f"int32x{lanes}"), "owner")
            value = k.let(tirx.Select(rows < broadcast(count, lanes), result, nothing), "value")
            # Blocks come in any order: among equals the lower row stays.
            lower = tirx.Select(value == largest, tirx.min(rows, owner), owner)
            owner = k.let(tirx.Select(value > largest, rows, lower), "owner")
            k.store(self.out, start, tirx.Select(value > largest, value, largest))
            k.store(self.out, start + ROW_VECTOR, reinterpret(owner, f"float32x{lanes}"))
