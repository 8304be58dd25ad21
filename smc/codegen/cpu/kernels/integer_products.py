"""Integer products: int8 inputs by codes, exact integer sums that are flushed to float32 where a scale changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from smc.codegen.cpu.builder import (
    Expr,
    Kernel,
    Register,
    broadcast,
    cast,
    const,
    dtype_of,
    fence,
    fma,
    intrinsic,
    reinterpret,
)
from smc.codegen.cpu.isa import isa
from smc.codegen.cpu.kernels.activations import PerToken, Source, SpreadPerToken
from smc.codegen.cpu.kernels.dot import ArmDot, Dot, InPlaceDot
from smc.codegen.cpu.kernels.spans import spans
from smc.codegen.cpu.kernels.weights import GroupParts, PackedWeights, Weights
from smc.codegen.kernels.groups import flushes_tiles, piece_quads, sum_group, tiles_of_scales
from smc.codegen.kernels.layout import QUADS, TILE
from smc.ir import Encoding


@dataclass(frozen=True)
class TileInputs:
    """The inputs of some tiles, or of half a tile, for every token: the sum of its codes, its scale (None: a larger sum
    is multiplied by it), and the initial value of integer sums (None: 0)."""

    totals: PerToken
    scales: PerToken | None
    initial: PerToken | None = None


@dataclass(frozen=True)
class IntegerProducts:
    """A few tokens by a row tile: `dot` multiplies the inputs at `source` by the weights, and the products are added to
    the accumulators, float32 [token][unit] in the form of `dot`."""

    weights: Weights
    dot: Dot
    source: Source
    accumulators: list[list[Register]]

    @property
    def kernel(self) -> Kernel:
        return self.weights.kernel

    @property
    def encoding(self) -> Encoding:
        return self.weights.encoding

    @property
    def lanes(self) -> int:
        """Float lanes of a register."""
        return self.weights.level.lanes

    def add(self, begin: Expr, tiles: Expr) -> None:
        """`tiles` tiles from `begin` on: an integer sum is flushed where either scale changes, to a sum of its own
        where input groups are larger than the weights'."""
        _, inputs = tiles_of_scales(self.encoding)
        if not self.encoding.has_partial_sums:
            self._add_groups(begin, tiles, inputs)
            return
        zero = const(0.0, f"float32x{self.lanes}")
        with spans(self.kernel, begin, tiles, inputs) as (_, first, count):
            parts = [[self.kernel.register(zero, "part") for _ in row] for row in self.accumulators]
            replace(self, accumulators=parts)._add_groups(first, count, None)
            self.add_parts(parts, first)

    def add_parts(self, parts: Sequence[Sequence[Register]], tile: Expr) -> None:
        """accumulator += part * input scale, of the inputs' group that has this tile."""
        scales = self.source.scales(tile)
        for m, (registers, row) in enumerate(zip(self.accumulators, parts, strict=True)):
            scale = scales.spread(self.dot.tokens_of(m))
            for total, part in zip(registers, row, strict=True):
                self.kernel.set(total, fma(part.value, scale, total.value))

    def _add_groups(self, begin: Expr, tiles: Expr, inputs: int | None) -> None:
        """The weight groups of `tiles` tiles from `begin` on; inputs: tiles of an input scale, None if one has all."""
        if flushes_tiles(self.encoding):
            for tile, half, parts in self.weights.pieces(begin, tiles):
                self._add_piece(tile, half, parts)
            return
        weights, _ = tiles_of_scales(self.encoding)
        with spans(self.kernel, begin, tiles, weights) as (group, first, count):
            shorter = inputs if weights is None or (inputs is not None and inputs < weights) else None
            with spans(self.kernel, first, count, shorter) as (_, tile, some):
                self._add_span(tile, some, self.weights.group_parts(group))

    # ---- several tiles, flushed at once

    def _add_span(self, first: Expr, count: Expr, parts: GroupParts) -> None:
        """`count` tiles from `first` on: one scale of the weights, one of the inputs."""
        k, units = self.kernel, range(len(self.weights.rows.units))
        totals = [k.register(zero, "total") for zero in self.source.zeros()]
        sums = self.dot.new_sums(len(self.accumulators), len(units))
        with k.loop(count, "tile", begin=first) as tile:
            for total, amount in zip(totals, self._input_sums(tile).values, strict=True):
                k.set(total, total.value + amount)
            self._add_tile(sums, units, tile, range(QUADS))
            if self.encoding.is_base3:  # 256 times a whole row may be more than an int32
                self.dot.collect(sums)
        self.dot.collect(sums)
        finished = PerToken([total.value for total in totals])
        self.flush(units, sums, TileInputs(finished, self._input_scales(first)), parts, self.weights.zero)

    def add_unflushed(self, sums: list[list[Register]], begin: Expr, tiles: Expr) -> None:
        """`tiles` tiles from `begin` on, to integer sums that `finish_rows` flushes: one scale for whole rows."""
        with self.kernel.loop(tiles, "tile", begin=begin) as tile:
            self._add_tile(sums, range(len(self.weights.rows.units)), tile, range(QUADS))

    def finish_rows(self, sums: list[list[Register]], tiles: Expr) -> None:
        """Flush the integer sums of a row's `tiles` tiles."""
        k, first = self.kernel, const(0, "int64")
        totals = [k.register(zero, "total") for zero in self.source.zeros()]
        with k.loop(tiles, "tile") as tile:
            for total, amount in zip(totals, self._input_sums(tile).values, strict=True):
                k.set(total, total.value + amount)
        inputs = TileInputs(PerToken([total.value for total in totals]), self._input_scales(first))
        units = range(len(self.weights.rows.units))
        self.flush(units, sums, inputs, self.weights.group_parts(first), self.weights.zero)

    # ---- a tile, or half of one, flushed at once

    def _add_piece(self, tile: Expr, half: int, parts: GroupParts) -> None:
        """A tile, or half of one: all units together, or one after the other."""
        inputs, count = self.tile_inputs(tile, half), len(self.weights.rows.units)
        step = count
        if isinstance(self.dot, ArmDot):
            step = min(step, self.dot.units_at_once(len(self.accumulators)))
        for first in range(0, count, step):
            units = range(first, first + step)
            sums, some = self.dot.new_sums(len(self.accumulators), step, inputs.initial), parts.of(units)
            if some.zeros is not None and not isa(self.weights.level).is_vector_by_lane:
                self._begin_with_zeros(sums, some.zeros, inputs.totals)
                some = replace(some, zeros=None)
            self._add_tile(sums, units, tile, piece_quads(self.encoding, half))
            self.dot.collect(sums)
            self.flush(units, sums, inputs, some)

    def _begin_with_zeros(self, sums: list[list[Register]], zeros: list[Expr], totals: PerToken) -> None:
        """sum = - zero * total: both fit int16, and x86 multiplies pairs of int16 faster than int32."""
        k, vector = self.kernel, f"int32x{self.lanes}"
        name = "llvm.x86.avx512.pmaddw.d.512" if self.lanes == 16 else "llvm.x86.avx2.pmadd.wd"
        words = f"int16x{2 * self.lanes}"
        amounts = list(totals.values)
        # Each product needs one factor whose upper half is 0: negate and mask the factor that has fewer values.
        if len(amounts) == 1:
            amounts = [k.let((const(0, "int32") - amounts[0]) & const(0xFFFF, "int32"), "amount")]
        else:
            zeros = [k.let((const(0, vector) - zero) & const(0xFFFF, vector), "pairs") for zero in zeros]
        for registers, amount in zip(sums, amounts, strict=True):
            pair = reinterpret(broadcast(amount, self.lanes), words)
            for register, zero in zip(registers, zeros, strict=True):
                k.set(register, intrinsic(vector, name, reinterpret(zero, words), pair))

    def tile_inputs(self, tile: Expr, half: int) -> TileInputs:
        """The initial values, sums and scales for a tile's sums."""
        zero, totals = self.weights.zero, self._input_sums(tile, half)
        initial = self._negated(totals, zero) if zero else None
        return TileInputs(totals, self._input_scales(tile), initial)

    def _negated(self, totals: PerToken, zero: int) -> PerToken:
        """- zero * total of every token."""
        if isa(self.weights.level).is_vector_by_lane or self.lanes == 16:
            return self._times(totals, -zero)
        # LLVM would multiply scalars and move them between registers, which takes longer than two more of these
        # instructions. In 512 bits they are slow.
        spread = [fence(broadcast(total, self.lanes)) for total in totals.values]
        return SpreadPerToken([self.kernel.let(v * const(-zero, dtype_of(v)), "initial") for v in spread])

    # ---- both

    def _add_tile(self, sums: list[list[Register]], units: range, tile: Expr, quads: range) -> None:
        """Add the quads of a tile for some units."""
        dot, x, inputs = self.dot, self.source.inputs.codes, self.source.codes(tile)
        some = self.weights.rows.units[units.start : units.stop]
        if lacking := self.weights.lacking(tile, quads):
            for registers in sums:
                for register, amount in zip(registers, lacking[units.start : units.stop], strict=True):
                    self.kernel.set(register, register.value + amount)
        if isinstance(dot, InPlaceDot):
            assert isinstance(self.weights, PackedWeights)
            dot.add_terms(some, self.weights.terms(tile, quads, dot.place), x, inputs[0], quads)
        else:
            dot.add(sums, some, self.weights.unpack(tile, quads), x, inputs, quads)

    def _input_sums(self, tile: Expr, half: int = 0) -> PerToken:
        """int32: the sum of every token's codes in a tile, or half of one."""
        per_tile = TILE // sum_group(self.encoding)
        return self.source.sums(tile * per_tile + half, per_tile)

    def _input_scales(self, tile: Expr) -> PerToken | None:
        """The scale of a tile's inputs, for every token; None if it is applied later, to a larger sum."""
        if self.encoding.input_group == "token" or self.encoding.has_partial_sums:
            return None
        return self.source.scales(tile)

    def _times(self, numbers: PerToken, factor: int) -> PerToken:
        """Integers by a constant."""
        return PerToken([self.kernel.let(v * const(factor, dtype_of(v)), "product") for v in numbers.values])

    def flush(
        self, units: range, sums: list[list[Register]], inputs: TileInputs, parts: GroupParts, zero: int = 0
    ) -> None:
        """accumulator += (sum - zero * total) * weight scale * input scale; a row's own scale comes in the epilogue.

        parts: of these units, with zeros where the sums lack them. zero: a constant one that they lack.
        """
        k, dot, totals = self.kernel, self.dot, inputs.totals
        excess = self._times(totals, zero) if zero else None
        amounts = self._amounts(inputs) if parts.offsets is not None else None
        for m, registers in enumerate(sums):
            lanes = dot.tokens_of(m)
            for u, (unit, register) in enumerate(zip(units, registers, strict=True)):
                accumulator, total = self.accumulators[m][unit], register.value
                if excess is not None:
                    total = total - excess.spread(lanes)
                if parts.zeros is not None:
                    total = total - dot.spread_rows(parts.zeros[u], m) * totals.spread(lanes)
                factor = dot.spread_rows(parts.scales[u], m) if parts.scales is not None else None
                if inputs.scales is not None:
                    spread = inputs.scales.spread(lanes)
                    factor = spread if factor is None else factor * spread
                old = accumulator.value
                value = cast(total, dtype_of(old)) if self.weights.shift_in_scales else dot.to_float(total)
                k.set(accumulator, value + old if factor is None else fma(value, factor, old))
                if parts.offsets is not None and amounts is not None:
                    offset = dot.spread_rows(parts.offsets[u], m)
                    k.set(accumulator, fma(offset, amounts.spread(lanes), accumulator.value))

    def _amounts(self, inputs: TileInputs) -> PerToken:
        """float32: the sum of every token's inputs, times their scale unless that comes later."""
        amounts = [cast(v, dtype_of(v).replace("int32", "float32")) for v in inputs.totals.values]
        if inputs.scales is not None:
            pairs = zip(amounts, inputs.scales.values, strict=True)
            amounts = [self.kernel.let(amount * scale, "amount") for amount, scale in pairs]
        return PerToken(amounts)
