"""The encodings that calibrated quantization chooses from: two-level scales, codebooks up to 5 bits, else integers."""

from __future__ import annotations

from typing import Literal

from smc.ir import Encoding, ceil_div

GROUP = 32
"""Columns that share a scale."""

SCALE_DTYPE: Literal["bf16"] = "bf16"
"""The dtype of the scale that a row's scales are multiples of. It is small (a weight over 127 times 255), where f16 has
too few bits."""

CODEBOOKS: dict[int, tuple[int, ...]] = {
    2: (-125, -34, 35, 127),
    3: (-126, -75, -41, -13, 13, 41, 75, 127),
    4: (-125, -95, -73, -56, -41, -29, -17, -6, 5, 16, 29, 42, 56, 73, 95, 127),
    5: (
        *(-127, -106, -89, -77, -67, -59, -51, -45, -39, -33, -28, -22, -17, -12, -7, -2),
        *(3, 7, 12, 17, 22, 28, 33, 39, 45, 51, 59, 67, 77, 89, 106, 127),
    ),
}
"""Codebooks on the int8 grid by the bits of a code, from Lloyd's algorithm on groups of a language model's weights,
each group with its best scale. Weights of other models have a similar distribution: nearly normal, cut off by the
scale."""

WIDTHS = (2, 3, 4, 5, 6, 8)
"""The bits of a code that can be chosen."""


def stored_as(bits: int, columns: int, rotation: int | None = None) -> Encoding:
    """The encoding with codes of `bits` bits for rows of `columns` columns: 8 bits per scale, and 16 per row."""
    groups = ceil_div(columns, GROUP)
    return Encoding.of(
        bits=bits,
        codebook=CODEBOOKS.get(bits),
        group=GROUP,
        super_group=max(2, groups),
        scale_dtype=SCALE_DTYPE,
        rotation=rotation,
    )
