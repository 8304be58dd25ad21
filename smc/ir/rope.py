"""Rotary position embedding: the tables of frequencies that frontends make, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RopeTable:
    """By how many radians a position turns each pair of channels.

    frequencies: float32 values, one for each pair. A head may have more channels than pairs: the rest is not turned.
    magnitude: cosines and sines are multiplied by it. text: how it was made, for people.
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    text: str = field(default="", compare=False, repr=False)

    @property
    def pairs(self) -> int:
        """How many pairs of channels are turned."""
        return len(self.frequencies)

    def __str__(self) -> str:
        return self.text or f"{self.pairs} pairs"
