"""Dot: exact integer dot products of unpacked codes with int8 inputs on a feature level, for any encoding.

A `Dot` adds tiles of 32 columns for a few tokens and units of rows: one register per token and unit. The instruction
decides what the lanes are: `tokens_of` and `spread_rows` have the mapping, so that scales can be applied in that order,
and `finish` makes registers of one token by its rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import tvm.tirx as tirx

from smc.codegen.cpu.builder import (
    Expr,
    Kernel,
    Pointer,
    Register,
    broadcast,
    cast,
    const,
    dtype_of,
    fence,
    intrinsic,
    reinterpret,
    shuffle,
    shuffle_pair,
)
from smc.codegen.cpu.isa import isa
from smc.codegen.cpu.kernels.activations import PerToken
from smc.codegen.cpu.kernels.unpack import CodeForm, InPlace
from smc.targets import CpuLevel

Sums = list[list[Register]]
"""[token][unit]."""

Starts = Sequence[Expr]
"""For every token, where its tile begins in x (int32, four int8 each)."""

Unpack = Callable[[Any, int], Any]
"""unit, quad → unpacked codes; of a split form magnitudes and signs."""

Terms = Callable[[Any, int], list[Expr]]
"""unit, quad → bytes of `InPlace`."""


class Dot(ABC):
    """How one feature level multiplies."""

    def __init__(self, kernel: Kernel, level: CpuLevel, form: CodeForm) -> None:
        self.kernel, self.level, self.form = kernel, level, form
        self.lanes = level.lanes

    def new_sums(self, tokens: int, units: int, initial: PerToken | None = None) -> Sums:
        """Sums [token][unit]; initial: int32 for every token, which all its rows begin with."""
        k, zero = self.kernel, const(0, f"int32x{self.lanes}")
        begin = [zero if initial is None else initial.spread(self.tokens_of(m)) for m in range(tokens)]
        return [[k.register(begin[m], "dot") for _ in range(units)] for m in range(tokens)]

    def tokens_of(self, register: int) -> list[int]:
        """The token of each lane of a unit's register."""
        return [register] * self.lanes

    def spread_rows(self, rows: Expr, register: int) -> Expr:
        """A number for each row of a unit, in the lanes where a register has these rows."""
        return rows

    def finish(self, registers: Sequence[Expr]) -> list[Expr]:
        """A unit's registers → for every token its rows."""
        return list(registers)

    # Optional, not abstract: only one kind of dot collects.
    def collect(self, sums: Sums) -> None:  # noqa: B027
        """Add partial sums that are kept elsewhere to the sums; most dots have none."""

    @abstractmethod
    def add(self, sums: Sums, units: Sequence[Any], unpack: Unpack, x: Pointer, inputs: Starts, quads: range) -> None:
        """Add the quads of a tile."""

    def to_float(self, value: Expr) -> Expr:
        """float32 [lanes] of finished sums, less the codes' shift."""
        vector = f"int32x{self.lanes}"
        return cast(value >> const(self.form.shift, vector) if self.form.shift else value, f"float32x{self.lanes}")


class _X86Dot(Dot):
    def add(self, sums: Sums, units: Sequence[Any], unpack: Unpack, x: Pointer, inputs: Starts, quads: range) -> None:
        """See `Dot.add`."""
        k, places = self.kernel, range(len(units))
        # One token takes codes in the order of memory; several share them, quad by quad.
        for some in [[u] for u in places] if len(inputs) == 1 else [places]:
            for quad in quads:
                codes = [self._codes(unpack(units[u], quad)) for u in some]
                for registers, start in zip(sums, inputs, strict=True):
                    spread = broadcast(k.let(x.load(start + quad), "x"), self.lanes)
                    values = reinterpret(spread, f"int8x{4 * self.lanes}")
                    for u, code in zip(some, codes, strict=True):
                        self._multiply(registers[u], code, values)

    def _codes(self, unpacked: Any) -> Any:
        """The operand of `_multiply` from unpacked codes."""
        return reinterpret(unpacked, f"int8x{4 * self.lanes}")

    @abstractmethod
    def _multiply(self, register: Register, codes: Any, values: Expr) -> None:
        """register += codes * values, four products a lane."""


class _Vpdpbusd(_X86Dot):
    """VNNI: unsigned codes by signed inputs, four products into one int32 without saturation."""

    def _multiply(self, register: Register, codes: Any, values: Expr) -> None:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        self.kernel.set(register, intrinsic(f"int32x{self.lanes}", name, register.value, codes, values))


class InPlaceDot(_Vpdpbusd):
    """One token by codes that stay where they lie in their bytes (`unpack.InPlace`); `collect` makes sums of codes."""

    def __init__(self, kernel: Kernel, level: CpuLevel, form: CodeForm, place: InPlace) -> None:
        super().__init__(kernel, level, form)
        self.place = place
        self._partial: list[list[Register]] = []

    def new_sums(self, tokens: int, units: int, initial: PerToken | None = None) -> Sums:
        """See `Dot.new_sums`."""
        zero = const(0, f"int32x{self.lanes}")
        self._partial = [[self.kernel.register(zero, "part") for _ in range(self.place.count)] for _ in range(units)]
        return super().new_sums(tokens, units, initial)

    def add_terms(self, units: Sequence[Any], terms: Terms, x: Pointer, start: Expr, quads: range) -> None:
        """Add the quads of a tile to the sums that `collect` has not taken yet."""
        k, dtype = self.kernel, f"int8x{4 * self.lanes}"
        for quad in quads:
            values = reinterpret(broadcast(k.let(x.load(start + quad), "x"), self.lanes), dtype)
            # All masks come before the products: if they alternate, both wait for the same pipes on Zen 4.
            found = [[k.let(reinterpret(term, dtype), "term") for term in terms(unit, quad)] for unit in units]
            for parts, some in zip(self._partial, found, strict=True):
                for part, term in zip(parts[self.place.sum_of(quad) :], some, strict=False):
                    self._multiply(part, term, values)

    def collect(self, sums: Sums) -> None:
        """Add the partial sums to the sums of codes, and set them to 0."""
        for register, parts in zip(sums[0], self._partial, strict=True):
            self.kernel.set(register, register.value + self.place.combined([part.value for part in parts], self.form))
            for part in parts:
                self.kernel.set(part, const(0, f"int32x{self.lanes}"))


class _Vpmaddubsw(_X86Dot):
    """AVX2: int16 sums of two products, added in int16 as long as they fit, then pairwise."""

    def add(self, sums: Sums, units: Sequence[Any], unpack: Unpack, x: Pointer, inputs: Starts, quads: range) -> None:
        """See `Dot.add`."""
        k = self.kernel
        step = 32767 // (2 * 127 * self.form.magnitude)
        for begin in range(quads.start, quads.stop, step):
            zero = const(0, f"int16x{2 * self.lanes}")
            pairs = [[k.register(zero, "pairs") for _ in units] for _ in inputs]
            super().add(pairs, units, unpack, x, inputs, range(begin, min(begin + step, quads.stop)))
            for registers, totals in zip(pairs, sums, strict=True):
                for pair, total in zip(registers, totals, strict=True):
                    k.set(total, total.value + self._fours(pair.value))

    def _multiply(self, register: Register, codes: Any, values: Expr) -> None:
        pairs = intrinsic(f"int16x{2 * self.lanes}", "llvm.x86.avx2.pmadd.ub.sw", codes, values)
        self._add_in_order(register, pairs)

    def _fours(self, pairs: Expr) -> Expr:
        """int32 [lanes]: sums of two int16 sums."""
        ones = const(1, f"int16x{2 * self.lanes}")
        return intrinsic(f"int32x{self.lanes}", "llvm.x86.avx2.pmadd.wd", pairs, ones)

    def _add_in_order(self, register: Register, value: Expr) -> None:
        """The fence keeps the order of sums: LLVM would make trees, which are a third slower."""
        self.kernel.set(register, fence(register.value + value))


class _Vpsignb(_Vpmaddubsw):
    """AVX2 by signed codes of 8 bits: their magnitudes, of at most 128, by inputs that take their signs.

    Two such products just fit int16. Halves of 4 bits, more of which fit, took a fifth more instructions.
    """

    def add(self, sums: Sums, units: Sequence[Any], unpack: Unpack, x: Pointer, inputs: Starts, quads: range) -> None:
        """See `Dot.add`."""
        _X86Dot.add(self, sums, units, unpack, x, inputs, quads)

    def _multiply(self, register: Register, codes: Any, values: Expr) -> None:
        signed = intrinsic(dtype_of(codes), "llvm.x86.avx2.psign.b", values, codes)
        self._multiply_magnitudes(register, magnitude(codes), signed)

    def _multiply_magnitudes(self, register: Register, magnitudes: Expr, values: Expr) -> None:
        pairs = intrinsic(f"int16x{2 * self.lanes}", "llvm.x86.avx2.pmadd.ub.sw", magnitudes, values)
        self._add_in_order(register, self._fours(pairs))


class _SplitCodes(_Vpsignb):
    """AVX2 by codes whose magnitudes and signs (-1 or 0) are apart: inputs take the signs by `xor`.

    x ^ -1 is -x - 1, so that the sum lacks the magnitudes of negative codes (`Weights.lacking`). `vpsignb` would be
    exact, but Zen 4 has it wait for the two pipes of the multiplications.
    """

    def _codes(self, unpacked: Any) -> Any:
        magnitudes, signs = unpacked
        return super()._codes(magnitudes), super()._codes(signs)

    def _multiply(self, register: Register, codes: Any, values: Expr) -> None:
        magnitudes, signs = codes
        self._multiply_magnitudes(register, magnitudes, values ^ signs)


def magnitude(codes: Expr) -> Expr:
    """Absolute values of int8 as LLVM knows them (`vpabsb`); of -128 the byte of 128."""
    zero = const(0, dtype_of(codes))
    return tirx.Select(codes < zero, zero - codes, codes)


INTERLEAVED = 4
"""The number of sums that alternate: a single sum would wait for itself, and in-order cores need this many."""


class ArmDot(Dot):
    """A unit's codes stay in registers for several tokens; with one token, the products of a few units alternate."""

    def to_float(self, value: Expr) -> Expr:
        """float32 [4], divided by the shift's power of two."""
        if not self.form.shift:
            return super().to_float(value)
        name, shift = "llvm.aarch64.neon.vcvtfxs2fp.v4f32.v4i32", const(self.form.shift, "int32")
        return intrinsic("float32x4", name, value, shift)

    def units_at_once(self, tokens: int) -> int:
        """The best number of units for `add`."""
        return INTERLEAVED if tokens == 1 else 1

    def add(self, sums: Sums, units: Sequence[Any], unpack: Unpack, x: Pointer, inputs: Starts, quads: range) -> None:
        """See `Dot.add`."""
        for u, unit in enumerate(units):
            codes = self.codes([unpack(unit, quad) for quad in quads])
            self.multiply([registers[u] for registers in sums], codes, x, inputs, quads)

    def codes(self, codes: list[Expr]) -> list[Expr]:
        """Unpacked quads of a unit for `multiply`: work that all tokens share."""
        return codes

    @abstractmethod
    def multiply(
        self, sums: Sequence[Register], codes: Sequence[Expr], x: Pointer, inputs: Sequence[Expr], quads: range
    ) -> None:
        """Add to the sums of one unit, a register for each token."""

    def _inputs(self, x: Pointer, start: Expr, quads: range) -> list[Expr]:
        """A token's quads, each four times: int8 [16] (a lane operand of `sdot`)."""
        words = [self.kernel.let(x.load(start + quad, 4), "x") for quad in quads[::4]]
        return [reinterpret(shuffle(words[q // 4], [q % 4] * 4), "int8x16") for q in range(len(quads))]


class _Sdot(ArmDot):
    """Four signed products into one int32; the quad is picked by lane."""

    def add(self, sums: Sums, units: Sequence[Any], unpack: Unpack, x: Pointer, inputs: Starts, quads: range) -> None:
        if len(inputs) > 1:
            super().add(sums, units, unpack, x, inputs, quads)
            return
        [values] = [self._inputs(x, start, quads) for start in inputs]
        for place, quad in enumerate(quads):
            codes = [unpack(unit, quad) for unit in units]
            for register, code in zip(sums[0], codes, strict=True):
                self._step(register, code, values[place])

    def multiply(
        self, sums: Sequence[Register], codes: Sequence[Expr], x: Pointer, inputs: Sequence[Expr], quads: range
    ) -> None:
        for first in range(0, len(sums), INTERLEAVED):
            some = range(first, min(first + INTERLEAVED, len(sums)))
            values = {m: self._inputs(x, inputs[m], quads) for m in some}
            for place, code in enumerate(codes):
                for m in some:
                    self._step(sums[m], code, values[m][place])

    def _step(self, register: Register, codes: Expr, values: Expr) -> None:
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        self.kernel.set(register, intrinsic("int32x4", name, register.value, codes, values))


class _Smull(ArmDot):
    """Plain NEON: int16 products, added in int16 as long as they fit, then pairwise."""

    def multiply(
        self, sums: Sequence[Register], codes: Sequence[Expr], x: Pointer, inputs: Sequence[Expr], quads: range
    ) -> None:
        # A pair of int16 sums must fit int16 too.
        step = min(32767 // (2 * 127 * self.form.magnitude), len(quads))
        for register, start in zip(sums, inputs, strict=True):
            total, values = register.value, self._inputs(x, start, quads)
            for begin in range(0, len(quads), step):
                places = range(begin, min(begin + step, len(quads)))
                halves = [self._products(codes, values, places, range(half, half + 8)) for half in (0, 8)]
                pairs = intrinsic("int16x8", "llvm.aarch64.neon.addp.v8i16", *halves)
                total = total + intrinsic("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", pairs)
            self.kernel.set(register, total)

    @staticmethod
    def _products(codes: Sequence[Expr], values: Sequence[Expr], places: range, lanes: range) -> Expr:
        total = None
        for place in places:
            pair = shuffle(codes[place], lanes), shuffle(values[place], lanes)
            product = intrinsic("int16x8", "llvm.aarch64.neon.smull.v8i16", *pair)
            total = product if total is None else total + product
        return total


class _Smmla(ArmDot):
    """2x8 by 8x2 matrices: registers of two tokens by two rows; rows 0 and 1 are where the first token's would be."""

    def tokens_of(self, register: int) -> list[int]:
        first = register - register % 2
        return [first, first, first + 1, first + 1]

    def spread_rows(self, rows: Expr, register: int) -> Expr:
        return shuffle(rows, [2, 3, 2, 3] if register % 2 else [0, 1, 0, 1])

    def finish(self, registers: Sequence[Expr]) -> list[Expr]:
        pairs = [registers[m : m + 2] for m in range(0, len(registers), 2)]
        return [shuffle_pair(pair, order) for pair in pairs for order in ([0, 1, 4, 5], [2, 3, 6, 7])]

    def codes(self, codes: list[Expr]) -> list[Expr]:
        """Rows 0 and 1 with 8 columns each, then rows 2 and 3."""
        words = [reinterpret(code, "int32x4") for code in codes]
        return [
            self.kernel.let(reinterpret(shuffle_pair(words[q : q + 2], order), "int8x16"), "rows")
            for order in ([0, 4, 1, 5], [2, 6, 3, 7])
            for q in range(0, len(words), 2)
        ]

    def multiply(
        self, sums: Sequence[Register], codes: Sequence[Expr], x: Pointer, inputs: Sequence[Expr], quads: range
    ) -> None:
        k, half = self.kernel, len(codes) // 2
        for m in range(0, len(inputs), 2):
            # A pair's inputs lie 8 columns by 8 columns (activations.py).
            pairs = [reinterpret(k.let(x.load(inputs[m] + 2 * quad, 4), "x"), "int8x16") for quad in quads[::2]]
            name = "llvm.aarch64.neon.smmla.v4i32.v16i8"
            for place, pair in enumerate(pairs):
                for register, code in ((sums[m], codes[place]), (sums[m + 1], codes[half + place])):
                    k.set(register, intrinsic("int32x4", name, register.value, pair, code))


_KINDS: dict[str, type[Dot]] = {
    "vpdpbusd": _Vpdpbusd,
    "vpmaddubsw": _Vpmaddubsw,
    "smull": _Smull,
    "sdot": _Sdot,
    "smmla": _Smmla,
}


def dot_for(kernel: Kernel, level: CpuLevel, form: CodeForm, tokens: int) -> Dot:
    """The level's way to multiply so many tokens at once."""
    kind = _KINDS[level.dot]
    if isa(level).interleaves_pairs and tokens % 2:
        return _Sdot(kernel, level, form)
    if issubclass(kind, _Vpmaddubsw) and form.signed:
        return (_SplitCodes if form.split else _Vpsignb)(kernel, level, form)
    return kind(kernel, level, form)
