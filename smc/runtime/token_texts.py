"""The bytes of single tokens: a token may be a part of a character."""

from __future__ import annotations

import json
import re
from functools import cached_property

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level BPE writes for bytes (GPT-2, Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenTexts:
    """Bytes and texts of a tokenizer's tokens; special ones have their names."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; empty for an id that has none."""
        if token in self._added:
            return self._added[token].encode()
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._is_byte_level:
            return bytes(self._alphabet[c] for c in text if c in self._alphabet)
        if match := _BYTE.fullmatch(text):
            return bytes([int(match[1], 16)])
        return text.replace("\u2581", " ").encode()

    def text_of(self, token: int) -> str:
        """The token as text; bytes that are not whole characters become U+FFFD."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def name_of(self, token: int) -> str:
        """The token's text; as in OpenAI's API, bytes that are not whole characters become "bytes:\\xe2\\x80"."""
        data = self.bytes_of(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    @cached_property
    def _is_byte_level(self) -> bool:
        decoder = json.loads(self._tokenizer.to_str())["decoder"] or {}
        parts = decoder.get("decoders", [decoder])
        return any(part.get("type") == "ByteLevel" for part in parts)

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        return byte_alphabet()
