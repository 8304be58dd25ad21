"""Control tokens: the tokens that control a model. Text of users never becomes one of them.

They are the special tokens of the tokenizer, the tokens that begin and end a text, and every added token that the chat
template itself writes, even if it is not special. White space is no control token, because users write it, too.

One exception: if a template looks for such a text in messages (`</think>`, to leave out old thoughts), an answer may
contain it. The answer is the model's own, and the template would not find the text otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import Normalizer

from smc.runtime.template_language import template_texts

ENDS = ("bos_token", "eos_token")


@dataclass(frozen=True)
class ControlTokens:
    """Control tokens by text: their ids, and the flags that say where they are found in a text.

    in_answers: the texts that stay tokens in an answer. normalizer: the tokenizer's.
    """

    ids: Mapping[str, int]
    flags: Mapping[str, AddedToken]
    in_answers: frozenset[str] = frozenset()
    normalizer: Normalizer | None = None

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the text of any of them, the longest at a place, as `tokenizers` does."""
        return _any_of(self.ids)

    @cached_property
    def pattern_in_answers(self) -> re.Pattern[str]:
        """Matches those that an answer must not contain."""
        return _any_of(self.ids.keys() - self.in_answers)

    def disguised(self, text: str) -> bool:
        """Whether normalizing the text may make new control tokens, for example from wide letters.

        It may also be true for a text in which that does not happen.
        """
        if self.normalizer is None or not any(token.normalized for token in self.flags.values()):
            return False
        return self._normalized_pattern.search(self.normalizer.normalize_str(text)) is not None

    @cached_property
    def _normalized_pattern(self) -> re.Pattern[str]:
        """Matches control tokens in normalized texts, whatever the normalizer puts before a text."""
        assert self.normalizer is not None
        normalized = {self.normalizer.normalize_str(f"x{text}x").partition("x")[2][:-1] for text in self.ids}
        return _any_of({text for text in (*normalized, *self.ids) if text})


def control_tokens(
    tokenizer: Tokenizer, template: str | None, named: Mapping[str, str], ends: Iterable[int]
) -> ControlTokens:
    """The control tokens of a model.

    template: jinja source. named: "bos_token", … to text. ends: ids that end a text. Raises jinja2.TemplateError if the
    template has a syntax error.
    """
    added = {token.content: (n, token) for n, token in tokenizer.get_added_tokens_decoder().items() if token.content}
    found = {text for text, (_, token) in added.items() if token.special}
    found |= {text for name in ENDS if (text := named.get(name))}
    found |= {text for number in ends if (text := tokenizer.id_to_token(number))}
    searched: set[str] = set()
    if template is not None:
        source = template_texts(template)
        written = "\0".join(source.written)
        soft = {text for text in added.keys() - found if text in written and not text.isspace()}
        looked_for = "\0".join(source.compared | source.searched)
        searched = {text for text in soft if text in looked_for}
        found |= soft
    ids = {text: number for text in sorted(found) if (number := tokenizer.token_to_id(text)) is not None}
    flags = {text: added[text][1] if text in added else AddedToken(text, normalized=False) for text in ids}
    return ControlTokens(ids, flags, frozenset(searched), tokenizer.normalizer)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts; without texts it matches nothing."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
