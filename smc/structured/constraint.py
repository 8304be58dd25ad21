"""Grammars as a `Constraint` of generation, with llguidance."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from smc.errors import InputError, blamed_on
from smc.runtime import Model
from smc.structured.grammar import Grammar


class Grammars:
    """Makes constraints for the texts of one model; its tokenizer is prepared once, which takes about a second.

    Raises InputError if the model has no tokenizer, or one that llguidance can't read.
    """

    def __init__(self, model: Model) -> None:
        self._ends = sorted(model.eos_token_ids)
        self._vocab_size = model.vocab_size
        if not self._ends:
            raise InputError(f"{model.artifact.manifest.name} has no token that ends a text, which a grammar needs")
        tokenizer = model.tokenizer
        self._size = max(model.vocab_size, tokenizer.get_vocab_size(with_added_tokens=True))
        with blamed_on(f"the tokenizer of {model.artifact.manifest.name} can't be used with grammars"):
            self._tokenizer = LLTokenizer(tokenizer.to_str(), n_vocab=self._size, eos_token=self._ends[0])

    def constraint(self, grammar: Grammar) -> GrammarConstraint:
        """A constraint for one text. InputError for a grammar that is wrong or that no text fulfils."""
        compiled = grammar.compiled()
        error = LLMatcher.validate_grammar(compiled, self._tokenizer)
        if error:
            raise InputError(f"the {grammar.name} can't be used: {' '.join(str(error).split())}")
        return GrammarConstraint(LLMatcher(self._tokenizer, compiled), self._size, self._vocab_size, self._ends)


_ENDS = {"NoExtension", "NoExtensionBias", "EndOfSentence"}
"""Why llguidance stops where a text is complete; it also stops at limits of time and memory."""


class GrammarConstraint:
    """A text's place in its grammar."""

    def __init__(self, matcher: LLMatcher, size: int, vocab_size: int, ends: Iterable[int]) -> None:
        self._matcher = matcher
        self._bits = allocate_token_bitmask(1, size)
        self._vocab_size = vocab_size
        self._ends = list(ends)

    def restrict(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Constraint`. InputError if the grammar takes too much time or memory."""
        fill_next_token_bitmask(self._matcher, self._bits, 0)
        if self._matcher.is_error():
            raise InputError(f"the grammar can't be followed: {' '.join(self._matcher.get_error().split())}")
        allowed = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little")[: self._vocab_size].view(bool)
        if allowed[self._ends[0]] or not allowed.any():
            allowed[self._ends] = True
        return np.where(allowed, logits, np.float32(-np.inf))

    def foresee(self) -> list[int]:
        """See `Constraint`: the text as the tokenizer would cut it, which a model may cut otherwise."""
        return list(self._matcher.compute_ff_tokens())

    def accept(self, token: int) -> bool:
        """See `Constraint`."""
        self._matcher.consume_token(token)
        if not self._matcher.is_stopped():
            return True
        if self._matcher.is_error() or self._matcher.stop_reason() not in _ENDS:
            raise InputError(f"the grammar can't be followed: {' '.join(self._matcher.get_error().split())}")
        return False
