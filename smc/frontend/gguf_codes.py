"""GGUF's block types as codes and scales: those that an encoding says exactly.

The layouts are those of ggml-common.h (https://github.com/ggml-org/ggml), block after block along a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from smc.ir import EncodedTensor, Encoding

Blocks = np.ndarray
"""uint8 [rows, blocks, bytes]."""


@dataclass(frozen=True)
class BlockType:
    """One type. size: weights per block. codes: of its bytes, uint8 [rows, blocks, size].

    scale, minimum: where their f16 numbers begin in a block; minimum: None where the encoding has none.
    """

    encoding: Encoding
    size: int
    codes: Callable[[Blocks], np.ndarray]
    scale: int = 0
    minimum: int | None = None

    def decode(self, raw: np.ndarray, shape: tuple[int, int]) -> EncodedTensor:
        """The tensor of this shape in the bytes `raw`."""
        import torch

        blocks = raw.reshape(shape[0], shape[1] // self.size, -1)

        def floats(place: int) -> torch.Tensor:
            numbers = np.ascontiguousarray(blocks[..., place : place + 2]).view(np.float16)[..., 0]
            return torch.from_numpy(numbers.astype(np.float32))

        return EncodedTensor(
            self.encoding,
            shape,
            codes=torch.from_numpy(np.ascontiguousarray(self.codes(blocks))),
            scales=floats(self.scale),
            offsets=None if self.minimum is None else floats(self.minimum),
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
            shifted = blocks[..., begin:end] * np.uint8(3**digit)  # modulo 256, as the format wants
            parts.append((shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8))
    return np.concatenate(parts, axis=-1)


def _twos(blocks: Blocks) -> np.ndarray:
    """TQ2_0: of two halves of 32 bytes each, the lowest two bits of all, then the next."""
    halves = (blocks[..., :32], blocks[..., 32:64])
    return np.concatenate([half >> shift & 3 for half in halves for shift in (0, 2, 4, 6)], axis=-1)


def _integers(bits: int) -> Encoding:
    return Encoding.of(bits=bits, group=32)


def _with_minimum(bits: int) -> Encoding:
    return Encoding.of(bits=bits, minimum=True, group=32)


TERNARY = Encoding.of(bits=2, zero=1, group=256)

BLOCK_TYPES = {
    "Q8_0": BlockType(_integers(8), 32, _octets),
    "Q4_0": BlockType(_integers(4), 32, _nibbles(2)),
    "Q4_1": BlockType(_with_minimum(4), 32, _nibbles(4), minimum=2),
    "Q5_0": BlockType(_integers(5), 32, _fives(2)),
    "Q5_1": BlockType(_with_minimum(5), 32, _fives(4), minimum=2),
    "TQ1_0": BlockType(TERNARY, 256, _base3, scale=52),
    "TQ2_0": BlockType(TERNARY, 256, _twos, scale=64),
}
"""The types that keep their codes."""
