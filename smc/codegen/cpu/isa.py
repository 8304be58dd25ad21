"""What kernels must know of a machine: one way to multiply int8, so that kernels name no instruction set.

A new machine is a level in smc/targets, its facts here, and its dot in kernels/dot.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from smc.codegen.kernels.layout import ROW_VECTOR
from smc.ir import Encoding
from smc.targets import CpuLevel

DIGIT_SHIFT = 6
"""Where in its byte x86 has a digit of base 3: at the top, as digits come out so."""


@dataclass(frozen=True)
class Isa:
    """The answers for an instruction that multiplies int8.

    signed_only: it multiplies signed by signed. sums_in_int16: products are added up in int16 first, which has little
    room. multiplies_in_place: codes may stay where they lie in their bytes, the products' sums are shifted.
    interleaves_tokens, interleaves_pairs: activations of 8 tokens lie tile by tile, pairs of these 8 columns by 8.
    """

    signed_only: bool = False
    sums_in_int16: bool = False
    multiplies_in_place: bool = False
    interleaves_tokens: bool = False
    interleaves_pairs: bool = False

    @property
    def is_vector_by_lane(self) -> bool:
        """Inputs are picked by lane from registers that several tokens share, so that unpacked weights wait in
        registers, and not in a panel."""
        return self.signed_only

    @property
    def has_byte_dot(self) -> bool:
        """Four products are added to an int32 by one instruction."""
        return not self.sums_in_int16

    def signed_codes(self, encoding: Encoding) -> bool:
        """Whether codes are unpacked as signed bytes: sums in int16 have no room for unsigned ones of 8 bits."""
        whole_bytes = encoding.has_integer_codebook if encoding.has_codebook else encoding.bits == 8
        return self.signed_only or (self.sums_in_int16 and encoding.rounds_inputs and whole_bytes)

    def code_shift(self, encoding: Encoding, signed: bool) -> int:
        """How far up in their bytes codes of integers are left, where that saves instructions."""
        if not signed:
            # Sums in int16 have no room for digits at the top, and float inputs look codes up.
            return DIGIT_SHIFT if encoding.is_base3 and encoding.rounds_inputs and not self.sums_in_int16 else 0
        if encoding.is_base3:
            return 0
        # Codes at the top of the byte cost no sign extension; int16 products have no room for them.
        return 0 if self.sums_in_int16 and self.signed_only and encoding.rounds_inputs else 8 - encoding.bits

    def folds_zeros(self, encoding: Encoding, bits: int) -> bool:
        """Whether stored zeros can be subtracted from codes of so many bits when these are unpacked into a panel."""
        return encoding.stores_zeros and bits < 8 and not (self.sums_in_int16 and bits > 3)


_ISAS = {
    "vpdpbusd": Isa(multiplies_in_place=True),
    "vpmaddubsw": Isa(sums_in_int16=True),
    "smull": Isa(signed_only=True, sums_in_int16=True, interleaves_tokens=True),
    "sdot": Isa(signed_only=True, interleaves_tokens=True),
    "smmla": Isa(signed_only=True, interleaves_tokens=True, interleaves_pairs=True),
}
"""By `CpuLevel.dot`."""


def isa(level: CpuLevel) -> Isa:
    """The answers for a level."""
    return _ISAS[level.dot]


def has_few_registers(level: CpuLevel) -> bool:
    """Whether sums of many tokens fill the registers, so that other values have to wait in memory."""
    return level.registers < 2 * ROW_VECTOR
