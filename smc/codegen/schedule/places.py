"""How many bytes a buffer takes, and where its parts lie."""

from __future__ import annotations

from dataclasses import dataclass

from smc.codegen.kernels.abi import Form
from smc.codegen.kernels.layout import padded

ALIGNMENT = 64
"""Of everything in the arena and in scratch: a cache line."""


@dataclass(frozen=True)
class Place:
    """Byte offsets of a buffer: values or codes, and for codes their scales and sums."""

    data: int
    scales: int = 0
    sums: int = 0


def buffer_bytes(form: Form, tokens: int, width: int) -> list[int]:
    """Bytes of each part of a buffer of so many tokens and padded columns."""
    if not form.has_scales:
        return [padded(tokens * width * 4, ALIGNMENT)]
    scales = tokens if form.group == "token" else tokens * width // 32
    return [padded(n, ALIGNMENT) for n in (tokens * width, scales * 4, tokens * width // form.sum_group * 4)]


def place_of(parts: list[int], begin: int) -> Place:
    """The parts one after the other."""
    return Place(*(begin + sum(parts[:i]) for i in range(len(parts))))
