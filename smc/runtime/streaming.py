"""From tokens to text: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"

# Tokens of the prompt that are decoded together with the first new ones, so that spaces between them are right.
_CONTEXT_TOKENS = 6

# The limit for pending tokens, so that the time per token does not grow if a model emits only broken bytes.
_MAX_PENDING_TOKENS = 64


class Detokenizer:
    """Decodes a growing list of tokens; `push` returns the text that each token completes.

    A token may end in the middle of a UTF-8 sequence (byte-level BPE, byte fallback): such bytes are held back until
    the character is complete or can't become one. Decoders join tokens by context (SentencePiece drops the first
    space), so a token is decoded together with those before it, and the difference is its text. Special tokens are not
    text unless `show_special`.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), show_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = not show_special
        self._context = list(prompt[-_CONTEXT_TOKENS:])  # tokens whose text was returned
        self._context_text = self._decode(self._context)
        self._pending: list[int] = []  # tokens whose text was returned in part or not at all
        self._emitted = 0  # characters of the pending tokens' text that were returned

    def push(self, token: int) -> str:
        """The new text that can't change any more; may be empty."""
        self._pending.append(token)
        text = self._pending_text()
        # Replacement characters at the end may be the first bytes (at most 3) of the next character.
        end = max(len(text.rstrip(_REPLACEMENT)), len(text) - 3)
        if len(self._pending) > _MAX_PENDING_TOKENS:
            end = len(text)
        piece = text[self._emitted : end]
        if end == len(text) and text:
            self._context, self._context_text = self._pending, self._decode(self._pending)
            self._pending, self._emitted = [], 0
        else:
            self._emitted = max(self._emitted, end)
        return piece

    def flush(self) -> str:
        """The text that was held back: bytes that never became a character, as U+FFFD."""
        piece = self._pending_text()[self._emitted :]
        self._pending, self._emitted = [], 0
        return piece

    def _pending_text(self) -> str:
        """The text of the pending tokens as it continues the context."""
        joined = self._decode(self._context + self._pending)
        if joined.startswith(self._context_text):
            return joined[len(self._context_text) :]
        return self._decode(self._pending)  # the context ended in bytes that decode differently with the next ones

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=self._skip_special)
        return text


class StopStrings:
    """Passes text through until one of `stops` occurs; holds back an end that may begin a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may be shown now. After a stop string (`stopped` is true) it is always empty."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [index for index in (text.find(stop) for stop in self._stops) if index >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """The text that was held back, when the text has ended."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
