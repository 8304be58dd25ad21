"""What kernels need to know about a machine: its way to multiply int8, so that kernels name no instruction set.

A new machine is a level in smc/targets, its facts here, and its dot in kernels/dot.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from smc.codegen.kernels.layout import ROW_VECTOR
from smc.ir import Encoding
from smc.targets import CpuLevel

DIGIT_SHIFT = 6
"""The place of a base-3 digit in its byte on x86: at the top, where it is computed."""


@dataclass(frozen=True)
class Isa:
    """The facts about an instruction that multiplies int8.

    signed_only: it multiplies signed by signed. sums_in_int16: products are first added in int16, which overflows soon.
    multiplies_in_place: codes may stay at their place in bytes; the sums of products are shifted. interleaves_tokens,
    interleaves_pairs: activations of 8 tokens lie tile by tile, pairs of these 8 columns by 8.
    """

    signed_only: bool = False
    sums_in_int16: bool = False
    multiplies_in_place: bool = False
    interleaves_tokens: bool = False
    interleaves_pairs: bool = False

    @property
    def is_vector_by_lane(self) -> bool:
        """Whether inputs are picked by lane from registers that several tokens share, so that unpacked weights stay in
        registers, and not in a panel."""
        return self.signed_only

    @property
    def has_byte_dot(self) -> bool:
        """Whether one instruction adds four products to an int32."""
        return not self.sums_in_int16

    def signed_codes(self, encoding: Encoding) -> bool:
        """Whether codes are unpacked as signed bytes: sums in int16 would overflow with unsigned 8-bit codes."""
        whole_bytes = encoding.has_integer_codebook if encoding.has_codebook else encoding.bits == 8
        return self.signed_only or (self.sums_in_int16 and encoding.rounds_inputs and whole_bytes)

    def code_shift(self, encoding: Encoding, signed: bool) -> int:
        """How far integer codes are shifted up in their bytes, if that saves instructions."""
        if not signed:
            # Sums in int16 overflow with digits at the top, and float inputs use codes as indices.
            return DIGIT_SHIFT if encoding.is_base3 and encoding.rounds_inputs and not self.sums_in_int16 else 0
        if encoding.is_base3:
            return 0
        # Codes at the top of the byte need no sign extension, but int16 products overflow with them.
        return 0 if self.sums_in_int16 and self.signed_only and encoding.rounds_inputs else 8 - encoding.bits

    def folds_zeros(self, encoding: Encoding, bits: int) -> bool:
        """Whether stored zeros can be subtracted from codes of this many bits when they are unpacked into a panel."""
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
    """The facts about a level."""
    return _ISAS[level.dot]


def has_few_registers(level: CpuLevel) -> bool:
    """Whether sums of many tokens fill the registers, so that other values are kept in memory."""
    return level.registers < 2 * ROW_VECTOR
