"""GGUF's block types as codes and scales: those that an encoding represents exactly.

The layouts are those of ggml-common.h (https://github.com/ggml-org/ggml), block after block along a row. The K types
have two levels of scales, and those with minima two levels of these: f16 `d` (and `dmin`) times 4- or 6-bit codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from smc.ir import EncodedTensor, Encoding, matrix_shape

TWO_BITS = np.array([0, 2, 4, 6], np.uint8)
"""The shifts of the four pairs of bits in a byte."""

Blocks = np.ndarray
"""uint8 [rows, blocks, bytes]."""


@dataclass(frozen=True)
class BlockType:
    """One type. size: weights per block. codes: of its bytes, uint8 [rows, blocks, size].

    scale, minimum: where their f16 numbers begin in a block; minimum: None if the encoding has none.
    scale_codes, minimum_codes: of a block's groups, uint8 or int8 [rows, blocks, groups], where there are two levels:
    what is stored at `minimum` is then subtracted.
    """

    encoding: Encoding
    size: int
    codes: Callable[[Blocks], np.ndarray]
    scale: int = 0
    minimum: int | None = None
    scale_codes: Callable[[Blocks], np.ndarray] | None = None
    minimum_codes: Callable[[Blocks], np.ndarray] | None = None

    def decode(self, raw: np.ndarray, shape: tuple[int, ...]) -> EncodedTensor:
        """The tensor of this shape in the bytes `raw`."""
        import torch

        blocks = raw.reshape(matrix_shape(shape)[0], shape[-1] // self.size, -1)

        def floats(place: int) -> torch.Tensor:
            numbers = np.ascontiguousarray(blocks[..., place : place + 2]).view(np.float16)[..., 0]
            return torch.from_numpy(numbers.astype(np.float32))

        def integers(function: Callable[[Blocks], np.ndarray] | None, *shape: int) -> torch.Tensor | None:
            return None if function is None else torch.from_numpy(np.ascontiguousarray(function(blocks))).reshape(shape)

        rows, group = len(blocks), self.encoding.group_size(shape[-1])
        offsets = None if self.minimum is None else floats(self.minimum)
        return EncodedTensor(
            self.encoding,
            shape,
            codes=integers(self.codes, rows, -1, group),
            scales=floats(self.scale),
            scale_codes=integers(self.scale_codes, rows, -1),
            offsets=offsets if offsets is None or self.minimum_codes is None else -offsets,
            offset_codes=integers(self.minimum_codes, rows, -1),
        )


def _nibbles(start: int) -> Callable[[Blocks], np.ndarray]:
    """Low nibbles are the first half of a block's codes, high ones the second."""
    return lambda blocks: np.concatenate((blocks[..., start:] & 15, blocks[..., start:] >> 4), axis=-1)


def _fives(start: int) -> Callable[[Blocks], np.ndarray]:
    """Nibbles, and behind the scales a word of the fifth bits."""

    def codes(blocks: Blocks) -> np.ndarray:
        high = np.unpackbits(blocks[..., start : start + 4], axis=-1, bitorder="little")
        return _nibbles(start + 4)(blocks) | high << 4

    return codes


def _octets(blocks: Blocks) -> np.ndarray:
    """Signed bytes, from 128 on."""
    return blocks[..., 2:] ^ 128


def _base3(blocks: Blocks) -> np.ndarray:
    """TQ1_0: five trits per byte, the most significant first, of 32, then 16 bytes; then four of 4 bytes."""
    parts = []
    for begin, end, count in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        for digit in range(count):
            shifted = blocks[..., begin:end] * np.uint8(3**digit)  # modulo 256, as the format defines it
            parts.append((shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8))
    return np.concatenate(parts, axis=-1)


def _twos(blocks: Blocks) -> np.ndarray:
    """TQ2_0: two halves of 32 bytes; in each, first the lowest two bits of all bytes, then the next two."""
    halves = (blocks[..., :32], blocks[..., 32:64])
    return np.concatenate([half >> shift & 3 for half in halves for shift in (0, 2, 4, 6)], axis=-1)


def _sixes(place: int, part: int) -> Callable[[Blocks], np.ndarray]:
    """Q4_K, Q5_K: 12 bytes have eight 6-bit scales (part 0) and eight minima (part 1); of the last four of each the
    upper two bits stand above the first four."""

    def codes(blocks: Blocks) -> np.ndarray:
        scales, minima, low = (blocks[..., place + i : place + i + 4] for i in (0, 4, 8))
        first = (scales, minima)[part]
        nibbles = low >> 4 if part else low & 15
        return np.concatenate((first & 63, nibbles | first >> 6 << 4), axis=-1)

    return codes


def _fours_by_64(place: int, high: int | None) -> Callable[[Blocks], np.ndarray]:
    """Q4_K, Q5_K: 32 bytes for 64 weights, the low nibbles first; Q5_K: bit i of 32 bytes is the fifth of group i."""

    def codes(blocks: Blocks) -> np.ndarray:
        low = blocks[..., place : place + 128].reshape(*blocks.shape[:2], 4, 1, 32)
        nibbles = np.concatenate((low & 15, low >> 4), axis=-2)
        if high is None:
            return nibbles
        bits = blocks[..., None, high : high + 32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
        return nibbles | bits.reshape(nibbles.shape) << 4

    return codes


def _q6(blocks: Blocks) -> np.ndarray:
    """Q6_K: in each half 64 bytes of low nibbles and 32 of upper two bits: 32 weights at a time."""
    low = blocks[..., :128].reshape(*blocks.shape[:2], 2, 2, 32)
    nibbles = np.concatenate((low & 15, low >> 4), axis=-2)
    pairs = blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 1, 32) >> TWO_BITS[:, None] & 3
    return nibbles | pairs << 4


def _pairs(place: int) -> Callable[[Blocks], np.ndarray]:
    """Q2_K, Q3_K: in each half 32 bytes, first the lowest two bits of all."""

    def codes(blocks: Blocks) -> np.ndarray:
        halves = blocks[..., place : place + 64].reshape(*blocks.shape[:2], 2, 1, 32)
        return halves >> TWO_BITS[:, None] & 3

    return codes


def _q3(blocks: Blocks) -> np.ndarray:
    """Q3_K: pairs of bits, and the third in 32 bytes, bit i for 32 weights."""
    bits = blocks[..., None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    pairs = _pairs(32)(blocks)
    return pairs | bits.reshape(pairs.shape) << 2


def _q3_scales(blocks: Blocks) -> np.ndarray:
    """Q3_K: sixteen 6-bit scales plus 32 in 12 bytes: nibbles of 8 bytes, upper pairs in 4."""
    nibbles = np.concatenate((blocks[..., 96:104] & 15, blocks[..., 96:104] >> 4), axis=-1)
    upper = blocks[..., None, 104:108] >> TWO_BITS[:, None] & 3
    return (nibbles | upper.reshape(nibbles.shape) << 4).view(np.int8) - 32


def _signed(begin: int, end: int) -> Callable[[Blocks], np.ndarray]:
    """Bytes as they are, signed."""
    return lambda blocks: np.ascontiguousarray(blocks[..., begin:end]).view(np.int8)


def _iq4_scales(blocks: Blocks) -> np.ndarray:
    """IQ4_XS: eight 6-bit scales plus 32: nibbles in 4 bytes, upper pairs in two before them."""
    nibbles = np.stack((blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4), axis=-1)
    upper = blocks[..., 2:4, None] >> TWO_BITS & 3
    return (nibbles.reshape(*blocks.shape[:2], 8) | upper.reshape(*blocks.shape[:2], 8) << 4).view(np.int8) - 32


def _fours_by_32(blocks: Blocks) -> np.ndarray:
    """IQ4_XS: 16 bytes for 32 weights, the low nibbles first."""
    low = blocks[..., 8:136].reshape(*blocks.shape[:2], 8, 1, 16)
    return np.concatenate((low & 15, low >> 4), axis=-2)


def _integers(bits: int) -> Encoding:
    return Encoding.of(bits=bits, group=32)


def _with_minimum(bits: int) -> Encoding:
    return Encoding.of(bits=bits, minimum=True, group=32)


def _k_type(bits: int, group: int, **parts: Any) -> Encoding:
    return Encoding.of(bits=bits, group=group, super_group=256 // group, **parts)


IQ4_ENTRIES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""kvalues_iq4nl."""

TERNARY = Encoding.of(bits=2, zero=1, group=256)

BLOCK_TYPES = {
    "Q8_0": BlockType(_integers(8), 32, _octets),
    "Q4_0": BlockType(_integers(4), 32, _nibbles(2)),
    "Q4_1": BlockType(_with_minimum(4), 32, _nibbles(4), minimum=2),
    "Q5_0": BlockType(_integers(5), 32, _fives(2)),
    "Q5_1": BlockType(_with_minimum(5), 32, _fives(4), minimum=2),
    "Q2_K": BlockType(
        _k_type(2, 16, minimum="two-level"),
        256,
        _pairs(16),
        scale=80,
        minimum=82,
        scale_codes=lambda blocks: blocks[..., :16] & 15,
        minimum_codes=lambda blocks: blocks[..., :16] >> 4,
    ),
    "Q3_K": BlockType(_k_type(3, 16, signed_codes=True), 256, _q3, scale=108, scale_codes=_q3_scales),
    "Q4_K": BlockType(
        _k_type(4, 32, minimum="two-level"),
        256,
        _fours_by_64(16, None),
        minimum=2,
        scale_codes=_sixes(4, 0),
        minimum_codes=_sixes(4, 1),
    ),
    "Q5_K": BlockType(
        _k_type(5, 32, minimum="two-level"),
        256,
        _fours_by_64(48, 16),
        minimum=2,
        scale_codes=_sixes(4, 0),
        minimum_codes=_sixes(4, 1),
    ),
    "Q6_K": BlockType(_k_type(6, 16, signed_codes=True), 256, _q6, scale=208, scale_codes=_signed(192, 208)),
    "IQ4_NL": BlockType(Encoding.of(bits=4, codebook=IQ4_ENTRIES, group=32), 32, _nibbles(2)),
    "IQ4_XS": BlockType(
        _k_type(4, 32, codebook=IQ4_ENTRIES, signed_codes=True), 256, _fours_by_32, scale_codes=_iq4_scales
    ),
    "TQ1_0": BlockType(TERNARY, 256, _base3, scale=52),
    "TQ2_0": BlockType(TERNARY, 256, _twos, scale=64),
}
"""The types that keep their codes."""
