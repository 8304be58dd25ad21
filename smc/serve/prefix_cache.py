"""Which sequence a new text goes on in: the one that has the longest beginning of its prompt already.

Sequences whose text has ended keep what they hold until their slot or their memory is needed; the one that was used
longest ago goes first. A sequence that is in use, or that holds something else behind the common part, is forked: the
two share pages of the KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import count

from smc.runtime import Model, Sequence

WORTH_A_FORK = 16
"""Tokens in common from which on a sequence is forked, or another text's prefill waited for."""


@dataclass
class Kept:
    """A sequence and who uses it now: nobody (None) or a text. used: larger is later."""

    sequence: Sequence
    user: object | None = None
    used: int = 0


class PrefixCache:
    """The sequences of a model, `slots` at most."""

    def __init__(self, model: Model, slots: int) -> None:
        self._model = model
        self._slots = slots
        self._kept: list[Kept] = []
        self._clock = count(1)

    def take(self, prompt: Items[int], user: object) -> Sequence | None:
        """A sequence that holds as much of prompt[:-1] as any does, and no more; None where all slots are in use."""
        wanted = prompt[:-1]
        best, common = None, 0
        for kept in self._kept:
            length = common_length(kept.sequence.tokens, wanted)
            if length > common or (length == common and best is not None and best.user is not None):
                best, common = kept, length
        if best is not None and best.user is None and 2 * common >= best.sequence.length:
            return self._use(best, common, user)  # its own conversation goes on
        if best is not None and common >= WORTH_A_FORK and self._make_room(best):
            fork = Kept(best.sequence.fork())
            self._kept.append(fork)
            best.used = next(self._clock)
            return self._use(fork, common, user)
        if best is not None and common > 0 and best.user is None:
            return self._use(best, common, user)
        if not self._make_room(None):
            return None
        self._kept.append(Kept(self._model.new_sequence()))
        return self._use(self._kept[-1], 0, user)

    def give_back(self, user: object, keep: bool = True) -> None:
        """The text has ended; keep: what its sequence holds may be used again."""
        for kept in self._kept:
            if kept.user is user:
                kept.user, kept.used = None, next(self._clock)
                if not keep:
                    self._drop(kept)
                return

    def idle_tokens(self) -> int:
        """Tokens that unused sequences hold; those that share pages are counted twice."""
        return sum(kept.sequence.length for kept in self._kept if kept.user is None)

    def forget_oldest(self) -> bool:
        """Free an unused sequence; false where there is none."""
        return self._make_free(None)

    def clear(self) -> None:
        """Drop all sequences."""
        for kept in list(self._kept):
            self._drop(kept)

    def _use(self, kept: Kept, common: int, user: object) -> Sequence:
        kept.user, kept.used = user, next(self._clock)
        if kept.sequence.length > common:
            kept.sequence.truncate(common)
        return kept.sequence

    def _make_room(self, needed: Kept | None) -> bool:
        return len(self._kept) < self._slots or self._make_free(needed)

    def _make_free(self, needed: Kept | None) -> bool:
        idle = [kept for kept in self._kept if kept.user is None and kept is not needed]
        if idle:
            self._drop(min(idle, key=lambda kept: kept.used))
        return bool(idle)

    def _drop(self, kept: Kept) -> None:
        self._kept.remove(kept)
        kept.sequence.drop()


def common_length(first: Items[int], second: Items[int]) -> int:
    """How many tokens two texts have in common at their beginnings."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
