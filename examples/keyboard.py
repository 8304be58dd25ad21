"""A keyboard's suggestions: the next words by an n-gram model of your own texts and by a small language model.

    smc ngram build smollm2.smc notes.txt -o notes.ngram
    python examples/keyboard.py smollm2.smc notes.ngram "In the gar"

A word that was begun is completed. The n-gram model knows your words, the language model knows the language: their
probabilities are mixed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import smc
from smc.runtime import Model
from smc.runtime.ngram import NgramModel
from smc.runtime.token_texts import TokenTexts

OWN_SHARE = 0.5
"""What the n-gram model counts in the mixture."""

MOST_TOKENS = 6
"""Of a word."""


class Keyboard:
    """Suggests words. model and ngrams have the same tokens."""

    def __init__(self, model: Model, ngrams: NgramModel) -> None:
        self._model = model
        self._ngrams = ngrams
        texts = TokenTexts(model.tokenizer)
        self._texts = [texts.text_of(token) for token in range(model.vocab_size)]
        self._go_on = np.array([bool(text) and text[0].isalpha() for text in self._texts])

    def suggest(self, text: str, count: int = 3) -> list[str]:
        """The likeliest next words behind `text`, or ends of the word that it stops in; the likeliest first."""
        before, space, begun = text.rpartition(" ")
        wanted = space + begun
        tokens = self._model.encode(before or "\n")
        words: dict[str, float] = {}
        for token, probability in self._likeliest(tokens, wanted, 4 * count):
            word = self._finish([*tokens, token], self._texts[token])
            if word.strip() and word.startswith(wanted):
                words[word.strip()] = max(words.get(word.strip(), 0.0), probability)
        return sorted(words, key=lambda word: -words[word])[:count]

    def _likeliest(self, tokens: list[int], wanted: str, count: int) -> list[tuple[int, float]]:
        """Next tokens that agree with what was typed."""
        mixed = self._probabilities(tokens)
        fits = [wanted.startswith(text) or text.startswith(wanted) if text else False for text in self._texts]
        mixed = np.where(fits, mixed, 0.0)
        best = np.argsort(-mixed, kind="stable")[:count]
        return [(int(token), float(mixed[token])) for token in best if mixed[token] > 0]

    def _finish(self, tokens: list[int], word: str) -> str:
        """The word to its end, token by token."""
        for _ in range(MOST_TOKENS):
            probabilities = self._probabilities(tokens)
            inside = np.where(self._go_on, probabilities, 0.0)
            token = int(np.argmax(inside))
            if probabilities.sum() - inside.sum() >= inside[token]:  # it ends here, whatever follows
                break
            word, tokens = word + self._texts[token], [*tokens, token]
        return word

    def _probabilities(self, tokens: list[int]) -> NDArray[np.float64]:
        with self._model.new_sequence() as sequence:
            logits = sequence.extend(tokens).astype(np.float64)[-1]
        own = np.exp(logits - logits.max())
        return OWN_SHARE * self._ngrams.probabilities(tokens) + (1 - OWN_SHARE) * own / own.sum()


def main(artifact: str, ngrams: str, text: str) -> None:
    """Print a word per line."""
    with smc.load(artifact) as model:
        for word in Keyboard(model, NgramModel.load(Path(ngrams))).suggest(text):
            print(word)


if __name__ == "__main__":
    main(*sys.argv[1:4])
