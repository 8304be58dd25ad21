"""Float products: float weights, and quantized weights by float inputs; float32 fma column by column."""

from __future__ import annotations

from dataclasses import dataclass

from smc.codegen.cpu.builder import Expr, Register, broadcast, cast, const, fma
from smc.codegen.cpu.kernels.activations import Inputs
from smc.codegen.cpu.kernels.spans import each_tile, spans
from smc.codegen.cpu.kernels.unpack import cell, float_codes, load_floats
from smc.codegen.cpu.kernels.weights import GroupParts, PackedWeights
from smc.codegen.kernels.groups import tiles_of_scales
from smc.codegen.kernels.layout import QUADS, ROW_VECTOR, TILE


@dataclass(frozen=True)
class _Partial:
    """A token's sums in a group: of products, float32 [lanes] for each unit, and of inputs."""

    products: list[Register]
    inputs: Register


@dataclass(frozen=True)
class FloatProducts:
    """A few tokens (int64) by a row tile, added to the accumulators, float32 [token][unit]."""

    weights: PackedWeights
    inputs: Inputs
    tokens: list[Expr]
    accumulators: list[list[Register]]

    def add_floats(self, columns: Expr) -> None:
        """Add a whole row of float weights with `columns` columns (int32)."""
        k, lanes, rows = self.weights.kernel, self.weights.level.lanes, self.weights.rows
        width = k.let(cast(columns, "int64"), "width")
        inputs = [k.let(token * cast(self.inputs.stride, "int64"), "row") for token in self.tokens]
        with k.loop(width, "column") as column:
            place = k.let(cell(rows.vector, column, width) * ROW_VECTOR + rows.first, "place")
            self.weights.prefetch_column(place)
            weights = [k.let(load_floats(self.weights.matrix.codes, place + u.offset, lanes), "w") for u in rows.units]
            for m, start in enumerate(inputs):
                x = k.let(self.inputs.codes.load(start + column), "x")
                for accumulator, weight in zip(self.accumulators[m], weights, strict=True):
                    k.set(accumulator, fma(weight, broadcast(x, lanes), accumulator.value))

    def add_codes(self) -> None:
        """Add a whole row of quantized weights; each group has a sum of its own."""
        weights = self.weights
        k, encoding, tiles = weights.kernel, weights.encoding, weights.matrix.tiles
        if encoding.scales.group == 16:
            with k.loop(tiles, "tile") as tile:
                for half in range(2):
                    parts, partial = weights.group_parts(k.let(tile * 2 + half, "group")), self._new_partial()
                    self._add_tile(tile, range(half * 4, half * 4 + 4), partial, parts)
                    self._flush(partial, parts)
            return
        with spans(k, const(0, "int64"), tiles, tiles_of_scales(encoding)[0]) as (group, first, count):
            parts, partial = weights.group_parts(group), self._new_partial()
            with each_tile(k, first, count) as tile:
                self._add_tile(tile, range(QUADS), partial, parts)
            self._flush(partial, parts)

    def _new_partial(self) -> list[_Partial]:
        """Sums for every token."""
        k, zero = self.weights.kernel, const(0.0, f"float32x{self.weights.level.lanes}")
        return [
            _Partial(
                [k.register(zero, "part") for _ in self.weights.rows.units], k.register(const(0.0, "float32"), "sum")
            )
            for _ in self.tokens
        ]

    def _add_tile(self, tile: Expr, quads: range, partial: list[_Partial], parts: GroupParts) -> None:
        k, encoding, level = self.weights.kernel, self.weights.encoding, self.weights.level
        unpack = self.weights.unpack(tile, quads)
        inputs = [k.let(token * cast(self.inputs.stride, "int64") + tile * TILE, "input") for token in self.tokens]
        zeros = [k.let(cast(zero, f"float32x{level.lanes}"), "zero") for zero in parts.zeros or []]
        for quad in quads:
            codes = [unpack(unit, quad) for unit in self.weights.rows.units]
            for column in range(4):
                values = [float_codes(k, encoding, level, code, column) for code in codes]
                if zeros:
                    values = [k.let(value - zero) for value, zero in zip(values, zeros, strict=True)]
                for sums, start in zip(partial, inputs, strict=True):
                    x = k.let(self.inputs.codes.load(start + (quad * 4 + column)), "x")
                    if encoding.stores_minima:
                        k.set(sums.inputs, sums.inputs.value + x)
                    for register, value in zip(sums.products, values, strict=True):
                        k.set(register, fma(value, broadcast(x, level.lanes), register.value))

    def _flush(self, partial: list[_Partial], parts: GroupParts) -> None:
        """accumulator += part * scale + sum of inputs * offset; a row's own scale comes in the epilogue."""
        k, lanes = self.weights.kernel, self.weights.level.lanes
        for m, sums in enumerate(partial):
            for u, part in enumerate(sums.products):
                accumulator = self.accumulators[m][u]
                scaled = part.value + accumulator.value
                k.set(accumulator, fma(part.value, parts.scales[u], accumulator.value) if parts.scales else scaled)
                if parts.offsets is not None:
                    k.set(accumulator, fma(parts.offsets[u], broadcast(sums.inputs.value, lanes), accumulator.value))
