"""N-gram models: predict the next token from the last few, by how often n-grams occur in a text.

Interpolated Kneser-Ney smoothing (R. Kneser, H. Ney, "Improved backing-off for m-gram language modeling", 1995; in the
form of S. Chen, J. Goodman, "An empirical study of smoothing techniques", 1999): the longest n-grams count how often
they occur, shorter ones after how many different tokens they occur, and a discount per length is left for n-grams that
do not occur.

Such a model is small and fast. It predicts by itself, as a phone's keyboard does, and drafts for a language model
(smc/runtime/speculation.py).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smc.errors import InputError, blamed_on

VERSION = 1
MOST_ORDER = 8
"""Most tokens of the longest n-grams."""


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length, grouped by their first tokens: those of parent p are starts[p] … starts[p + 1].

    The parents are the n-grams one token shorter, in order; of single tokens there is one, the empty n-gram.
    tokens: int32, the last token of each, ascending within a parent. counts: uint32, occurrences at the longest level,
    else different tokens before it. discount: what is taken off each count.
    """

    starts: NDArray[np.int64]
    tokens: NDArray[np.int32]
    counts: NDArray[np.uint32]
    discount: float

    def child(self, parent: int, token: int) -> int | None:
        """The index of the n-gram `parent` + `token`."""
        begin, end = int(self.starts[parent]), int(self.starts[parent + 1])
        place = begin + int(np.searchsorted(self.tokens[begin:end], token))
        return place if place < end and self.tokens[place] == token else None

    def children(self, parent: int) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
        """The tokens that follow `parent`, and their counts."""
        part = slice(int(self.starts[parent]), int(self.starts[parent + 1]))
        return self.tokens[part], self.counts[part]


class NgramModel:
    """An n-gram model over the tokens of a tokenizer; a `Drafter`, too. Make it with `build` or `load`."""

    def __init__(self, levels: list[_Level], vocab_size: int, tokenizer: str) -> None:
        self._levels = levels
        self.vocab_size = vocab_size
        self.tokenizer = tokenizer

    @property
    def order(self) -> int:
        """Tokens of the longest n-grams."""
        return len(self._levels)

    @property
    def ngrams(self) -> int:
        """How many n-grams of all lengths it has."""
        return sum(level.tokens.size for level in self._levels)

    @classmethod
    def build(cls, tokens: Sequence[int], vocab_size: int, tokenizer: str, order: int = 5) -> NgramModel:
        """Count a text. tokenizer: the JSON of the tokenizer that made its tokens, which are below vocab_size.

        InputError if the text has fewer tokens than an n-gram, or `order` is out of range.
        """
        if not 1 <= order <= MOST_ORDER:
            raise InputError(f"the order of an n-gram model is from 1 to {MOST_ORDER}, not {order}")
        text = np.asarray(tokens, np.int64)
        if text.size < order:
            raise InputError(
                f"the text has {text.size} tokens, but n-grams of {order} need at least {order}: give a longer "
                "text or a smaller --order"
            )
        ids = np.zeros(text.size, np.int64)  # for every place of the text, the n-gram that begins there
        parents, found = 1, []
        for length in range(1, order + 1):
            ids = ids[: text.size - length + 1]
            keys, first, ids, counts = np.unique(
                ids * vocab_size + text[length - 1 :], return_index=True, return_inverse=True, return_counts=True
            )
            found.append((keys, parents, counts, first, ids))
            parents = keys.size
        levels = []
        for length, (keys, above, counts, _, own) in enumerate(found, 1):
            if length < order:  # an n-gram without its first token is the one that begins a place later
                longer = found[length][3]
                counts = np.bincount(own[longer + 1], minlength=keys.size)
            starts = np.searchsorted(keys, np.arange(above + 1) * vocab_size)
            once, twice = int((counts == 1).sum()), int((counts == 2).sum())
            discount = once / (once + 2 * twice) if once and twice else 0.5
            tokens_of = (keys % vocab_size).astype(np.int32)
            levels.append(_Level(starts.astype(np.int64), tokens_of, counts.astype(np.uint32), discount))
        return cls(levels, vocab_size, tokenizer)

    # ---- predicting

    def probabilities(self, context: Sequence[int]) -> NDArray[np.float64]:
        """The probability of every token after `context`, of which the last `order` - 1 tokens count: [vocab_size]."""
        result = np.full(self.vocab_size, 1 / self.vocab_size)
        for length, level in enumerate(self._levels, 1):
            parent = self._find(context[len(context) - length + 1 :]) if length <= len(context) + 1 else None
            tokens, counts = level.children(parent) if parent is not None else (None, None)
            if tokens is None or counts is None or not (total := int(counts.sum())):
                continue
            result *= level.discount * int((counts > 0).sum()) / total
            result[tokens] += np.maximum(counts - level.discount, 0.0) / total
        return result

    def predict(self, context: Sequence[int], count: int) -> list[tuple[int, float]]:
        """The `count` likeliest next tokens with their probabilities, likeliest first, the lower id among equals."""
        probabilities = self.probabilities(context)
        best = np.argsort(-probabilities, kind="stable")[:count]
        return [(int(token), float(probabilities[token])) for token in best]

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """See `smc.runtime.speculation.Drafter`: the token that most often followed the longest known context."""
        text, guesses = list(tokens[-self.order :]), list[int]()
        while len(guesses) < most:
            token = self._most_frequent(text)
            if token is None:
                break
            guesses.append(token)
            text.append(token)
        return guesses

    def close(self) -> None:
        """See `Drafter`: there is nothing to free."""

    def _most_frequent(self, text: list[int]) -> int | None:
        for length in range(min(self.order, len(text) + 1), 1, -1):
            parent = self._find(text[len(text) - length + 1 :])
            if parent is not None:
                tokens, counts = self._levels[length - 1].children(parent)
                if tokens.size and counts.max():
                    return int(tokens[counts.argmax()])
        return None

    def _find(self, ngram: Sequence[int]) -> int | None:
        """The index of an n-gram in its level; the empty one has 0."""
        place = 0
        for level, token in zip(self._levels, ngram, strict=False):
            found = level.child(place, token)
            if found is None:
                return None
            place = found
        return place

    # ---- files

    def save(self, path: Path) -> None:
        """Write the model to a file, an .npz archive, which gets its name when it is complete."""
        arrays: dict[str, Any] = {
            "version": np.array(VERSION),
            "vocab_size": np.array(self.vocab_size),
            "discounts": np.array([level.discount for level in self._levels]),
            "tokenizer": np.frombuffer(self.tokenizer.encode(), np.uint8),
        }
        for length, level in enumerate(self._levels, 1):
            arrays |= {
                f"starts{length}": level.starts,
                f"tokens{length}": level.tokens,
                f"counts{length}": level.counts,
            }
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            with unfinished.open("wb") as file:
                np.savez_compressed(file, **arrays)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a file looks like one that `save` wrote."""
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return "discounts.npy" in archive.namelist()

    @classmethod
    def load(cls, path: Path) -> NgramModel:
        """Read a file that `save` wrote; InputError for any other."""
        if not path.is_file():
            raise InputError(f"there is no n-gram model {path}: make one with `smc ngram build`")
        wrong = f"{path} is not an n-gram model: make one with `smc ngram build`"
        with blamed_on(wrong):
            if not cls.is_one(path):
                raise InputError(wrong)
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            version = int(arrays["version"])
            if version != VERSION:
                raise InputError(
                    f"{path} has version {version} of n-gram models, this smc reads {VERSION}: build it again"
                )
            vocab_size, levels, parents = int(arrays["vocab_size"]), [], 1
            for length, discount in enumerate(arrays["discounts"].tolist(), 1):
                starts, tokens, counts = (arrays[f"{part}{length}"] for part in ("starts", "tokens", "counts"))
                levels.append(
                    _Level(_checked(starts, parents, tokens, counts, vocab_size, wrong), tokens, counts, discount)
                )
                parents = tokens.size
            return cls(levels, vocab_size, arrays["tokenizer"].tobytes().decode())


def _checked(
    starts: NDArray[Any], parents: int, tokens: NDArray[Any], counts: NDArray[Any], vocab_size: int, wrong: str
) -> NDArray[np.int64]:
    """`starts` of a valid level; else InputError with the sentence `wrong`."""
    sound = (
        [part.dtype.name for part in (starts, tokens, counts)] == ["int64", "int32", "uint32"]
        and starts.shape == (parents + 1,)
        and tokens.shape == counts.shape == (tokens.size,)
        and (starts[0], starts[-1]) == (0, tokens.size)
        and bool((np.diff(starts) >= 0).all())
        and bool(((tokens >= 0) & (tokens < vocab_size)).all())
    )
    if not sound:
        raise InputError(wrong)
    return starts
