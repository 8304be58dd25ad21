"""Rotary position embedding: the tables of frequencies that frontends make, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RopeTable:
    """By how many radians a position turns each pair of channels.

    frequencies: float32 values, one for each pair. A head may have more channels than pairs: the rest is not turned.
    magnitude: cosines and sines are multiplied by it. text: how it was made, for people.
    short_frequencies: others (longrope), for a model that is opened with a context of at most `short_context` tokens.
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    text: str = field(default="", compare=False, repr=False)
    short_context: int = 0
    short_frequencies: tuple[float, ...] = ()

    def opened(self, context: int) -> RopeTable:
        """The table that a model has which is opened with a context of so many tokens."""
        frequencies = self.short_frequencies if context <= self.short_context else self.frequencies
        return RopeTable(frequencies, self.magnitude, self.text)

    @property
    def pairs(self) -> int:
        """How many pairs of channels are turned."""
        return len(self.frequencies)

    def __str__(self) -> str:
        return self.text or f"{self.pairs} pairs"
