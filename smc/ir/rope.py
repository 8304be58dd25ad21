"""Rotary position embedding: tables of frequencies as plain data, which frontends make."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RopeTable:
    """The angle in radians by which a position turns each pair of channels.

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
        """The table of a model that is opened with this context."""
        frequencies = self.short_frequencies if context <= self.short_context else self.frequencies
        return RopeTable(frequencies, self.magnitude, self.text)

    @property
    def pairs(self) -> int:
        """The number of pairs of channels that are turned."""
        return len(self.frequencies)

    def __str__(self) -> str:
        return self.text or f"{self.pairs} pairs"
