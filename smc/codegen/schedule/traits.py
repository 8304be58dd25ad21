"""What a schedule needs to know about a device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traits:
    """Sizes that a device prefers.

    step_tokens: how many tokens a step may have, from most to fewest: as many as keep the arena within arena_limit.
    arena_limit: bytes. chunk_tiles: tiles of 32 columns that a block of element-wise work covers.
    private_tokens: in steps of at most this many tokens every thread computes small results for itself (private.py).
    chain_tokens, chain_floats: how many tokens go through a chain together, at most, and how many floats each of its
    linears may leave in a thread's scratch; chain_groups: how many columns may share a scale in codes that a chain
    makes (chains.py).
    """

    step_tokens: tuple[int, ...]
    arena_limit: int
    chunk_tiles: int
    private_tokens: int
    chain_tokens: int
    chain_floats: int
    chain_groups: tuple[int, ...]

    def tokens_of_chain(self, rows: int) -> int:
        """Tokens that go through a chain together with `rows` rows at a time (a power of two)."""
        return min(self.chain_tokens, self.chain_floats // rows)
