"""Chooses the sequence for a new text: the one that already holds the longest beginning of its prompt.

Sequences whose text has ended keep their tokens until their slot or their memory is needed; the one that was used
longest ago is dropped first. A sequence that is in use, or that has other tokens after the common part, is forked: the
two share pages of the KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import count

from smc.runtime import Model, Sequence

WORTH_A_FORK = 16
"""With this many tokens in common, a sequence is forked, or a text waits for another text's prefill."""


@dataclass
class Kept:
    """A sequence and the text that uses it now, if there is one. used: when it was last used; larger is later."""

    sequence: Sequence
    user: object | None = None
    used: int = 0


class PrefixCache:
    """The sequences of a model, at most `slots`."""

    def __init__(self, model: Model, slots: int) -> None:
        self._model = model
        self._slots = slots
        self._kept: list[Kept] = []
        self._clock = count(1)

    def take(self, prompt: Items[int], user: object) -> Sequence | None:
        """A sequence that holds exactly the longest beginning of prompt[:-1] that any sequence has; None if all slots
        are in use."""
        wanted = prompt[:-1]
        best, common = None, 0
        for kept in self._kept:
            length = common_length(kept.sequence.tokens, wanted)
            if length > common or (length == common and best is not None and best.user is not None):
                best, common = kept, length
        if best is not None and best.user is None and 2 * common >= best.sequence.length:
            return self._use(best, common, user)  # the same conversation continues
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
        """Release the sequence of a text that has ended; keep: its tokens may be used again."""
        for kept in self._kept:
            if kept.user is user:
                kept.user, kept.used = None, next(self._clock)
                if not keep:
                    self._drop(kept)
                return

    def idle_tokens(self) -> int:
        """The number of tokens in unused sequences; tokens in shared pages count for each of them."""
        return sum(kept.sequence.length for kept in self._kept if kept.user is None)

    def forget_oldest(self) -> bool:
        """Free an unused sequence; false if there is none."""
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
    """The length of the common beginning of two texts, in tokens."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
