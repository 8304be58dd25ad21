"""The native tokenizer's tables, made from a tokenizer.json.

The C code can't read JSON: tokenizer_parts.py reads tokenizer.json, and standalone/c/tokenizer_internal.h defines the
tables.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from smc.errors import InputError, blamed_on
from smc.ir import ceil_div
from smc.runtime.control_tokens import ControlTokens, control_tokens
from smc.standalone.tokenizer_parts import (
    DECODE_BYTE_FALLBACK,
    DECODE_BYTE_LEVEL,
    Step,
    check_metaspace,
    read_decoder,
    read_normalizer,
    read_post_processor,
    read_pre_tokenizer,
    refusal,
)

MAGIC, VERSION = 0x6B6F7473, 1
ALIGNMENT = 8  # bytes
MOST_TOKENS = 1 << 20
MOST_MERGES = 1 << 24
MOST_STEP_BYTES = 64
SPACE = "\u2581"
"""The character for a space in SentencePiece's vocabularies: "▁"."""

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: multiplying by it spreads keys over the upper bits (Knuth, volume 3, 6.4)."""

# Masks of tokenizer_internal.h.
MODEL_BYTE_LEVEL, MODEL_BYTE_FALLBACK, MODEL_FUSE_UNKNOWN, MODEL_IGNORE_MERGES = 1, 2, 4, 8
TOKEN_EXISTS, TOKEN_CONTROL, TOKEN_BYTE, TOKEN_SKIPPED, TOKEN_IN_ANSWERS = 1, 2, 4, 8, 16
ADDED_NORMALIZED, ADDED_LSTRIP, ADDED_RSTRIP, ADDED_SINGLE_WORD = 1, 2, 4, 8


def tokenizer_tables(tokenizer_json: str, control: ControlTokens | None = None) -> bytes:
    """The tables of a tokenizer; the same text gives the same bytes.

    tokenizer_json: what `tokenizers` reads. control: the tokens that a user's text never becomes; None: the special
    ones. Raises InputError if the tokenizer can't be read, or if the native tokenizer lacks a part of it; the sentence
    names the part.
    """
    with blamed_on("the tokenizer can't be read"):
        tokenizer = Tokenizer.from_str(tokenizer_json)
    # `tokenizers` writes everything in one way, and keeps the last of merges that occur twice.
    data = json.loads(tokenizer.to_str())
    tables = _Tables(tokenizer, data, control or control_tokens(tokenizer, None, {}, ()))
    if tokenizer.get_vocab_size(with_added_tokens=False) != len(data["model"]["vocab"]):
        raise InputError("the tokenizer is broken: two tokens have the same id")
    return tables.build()


class _Tables:
    """Collects the sections of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, data: dict[str, Any], control: ControlTokens) -> None:
        self._data = data
        self._control = control
        self._model = data["model"]
        if self._model["type"] != "BPE":
            raise refusal(f"models of the kind {self._model['type']} (BPE is supported)")
        self._normalizer = read_normalizer(data["normalizer"])
        self._splitter, self._byte_level = read_pre_tokenizer(data["pre_tokenizer"])
        self._decoder = read_decoder(data["decoder"])
        if self._byte_level != bool(self._decoder.flags & DECODE_BYTE_LEVEL):
            raise refusal("a decoder of another kind than its pre-tokenizer")
        check_metaspace(self._normalizer, self._splitter)
        self._special = {token["content"] for token in data["added_tokens"] if token["special"]}
        self._normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
        self._tokens = self._vocabulary()
        self._texts = bytearray()
        self._spans: dict[bytes, tuple[int, int]] = {}

    def build(self) -> bytes:
        """Header and sections as one block."""
        model = self._model
        flags = MODEL_BYTE_LEVEL if self._byte_level else 0
        for name, flag in (
            ("byte_fallback", MODEL_BYTE_FALLBACK),
            ("fuse_unk", MODEL_FUSE_UNKNOWN),
            ("ignore_merges", MODEL_IGNORE_MERGES),
        ):
            flags |= flag if model[name] else 0
        if self._byte_level and flags & MODEL_BYTE_FALLBACK:
            raise refusal("byte fallback with a byte-level pre-tokenizer")
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model[name]:
                raise refusal(f"BPE with {name}")
        starts, token_flags = self._token_texts()
        buckets, merges, merged, hash_bits = self._merges()
        word_buckets, words, word_bits = self._words(flags)
        prefix, suffix = read_post_processor(self._data["post_processor"])
        decoder = self._decoder
        unknown = -1 if model["unk_token"] is None else self._id(model["unk_token"])
        texts = (decoder.replace_from, decoder.replace_to, self._word_start(unknown))
        spans = [self._span(text.encode()) for text in texts]
        added = self._added()
        steps = [self._steps(steps) for steps in (self._normalizer, self._splitter)]
        sections: list[tuple[bytes, int]] = [  # data, bytes of an element: in the header's order
            (bytes(self._texts), 1),
            (starts.tobytes(), 4),
            (token_flags, 1),
            (self._symbols(), 8),
            (self._byte_tokens(flags), 4),
            (buckets.tobytes(), 4),
            (merges.tobytes(), 8),
            (merged.tobytes(), 4),
            (word_buckets.tobytes(), 4),
            (words.tobytes(), 4),
            (added, 28),
            *((step, 32) for step in steps),
            (struct.pack(f"<{len(prefix)}i", *prefix), 4),
            (struct.pack(f"<{len(suffix)}i", *suffix), 4),
        ]
        numbers = [flags, decoder.flags, unknown, hash_bits, word_bits, decoder.strip]
        return _layout(numbers, spans, sections)

    # ---- texts

    def _span(self, text: bytes) -> tuple[int, int]:
        """The offset and length of a text in the section of bytes; equal texts share a place."""
        if text not in self._spans:
            self._spans[text] = (len(self._texts), len(text))
            self._texts += text
        return self._spans[text]

    def _vocabulary(self) -> dict[int, str]:
        """Id → the text to decode: that of the model or, for an added token, the text that is searched for."""
        tokens = {number: text for text, number in self._model["vocab"].items()}
        tokens |= {token["id"]: self._pattern(token) for token in self._data["added_tokens"]}
        if not tokens or max(tokens) >= MOST_TOKENS or len(self._model["merges"]) > MOST_MERGES:
            raise refusal(f"{len(tokens)} tokens with ids up to {max(tokens, default=0)} (ids are below {MOST_TOKENS})")
        return tokens

    def _pattern(self, token: Mapping[str, Any]) -> str:
        """The text that is searched for to find an added token."""
        return self._normalize(token["content"]) if token["normalized"] else str(token["content"])

    def _id(self, token: str) -> int:
        number = self._model["vocab"].get(token)
        if number is None:
            raise InputError(f"the tokenizer is broken: the token {token!r} is not in its vocabulary")
        return int(number)

    def _token_texts(self) -> tuple[NDArray[np.uint32], bytes]:
        """Put the texts of all ids into the section of bytes; the result is where they begin, and the ids' flags."""
        starts, flags = [0], bytearray()
        control = set(self._control.ids.values())
        in_answers = {self._control.ids[text] for text in self._control.in_answers}
        for number in range(max(self._tokens) + 1):
            text = self._tokens.get(number)
            flag = 0
            if text is not None:
                flag = TOKEN_EXISTS | (TOKEN_BYTE if self._is_byte(text) else 0)
                flag |= TOKEN_CONTROL if number in control else 0
                flag |= TOKEN_IN_ANSWERS if number in in_answers else 0
                flag |= TOKEN_SKIPPED if text in self._special else 0  # not if it is normalized to another text
                self._texts += _byte_level_text(text) if self._byte_level else text.encode()
            flags.append(flag)
            starts.append(len(self._texts))
        return np.array(starts, "<u4"), bytes(flags)

    def _is_byte(self, text: str) -> bool:
        """Whether ByteFallback takes a token for a byte, after the steps before it have changed the token."""
        if not self._decoder.flags & DECODE_BYTE_FALLBACK:
            return False
        seen = (
            text.replace(self._decoder.replace_from, self._decoder.replace_to) if self._decoder.replace_from else text
        )
        byte = re.fullmatch(r"<0x([0-9a-fA-F]{2}|\+[0-9a-fA-F])>", seen) is not None
        if byte and (seen != text or "+" in text):
            raise refusal(f"the token {text!r}")
        return byte

    # ---- the model

    def _symbols(self) -> bytes:
        """The tokens of one character (or one byte), with which merging begins."""
        if self._byte_level:
            alphabet = _byte_alphabet()
            found = {alphabet[t]: n for t, n in self._model["vocab"].items() if t in alphabet}
        else:
            found = {ord(t): n for t, n in self._model["vocab"].items() if len(t) == 1}
        return b"".join(struct.pack("<Ii", *pair) for pair in sorted(found.items()))

    def _byte_tokens(self, flags: int) -> bytes:
        if not flags & MODEL_BYTE_FALLBACK:
            return b""
        return struct.pack("<256i", *(self._model["vocab"].get(f"<0x{byte:02X}>", -1) for byte in range(256)))

    def _merges(self) -> tuple[NDArray[np.uint32], NDArray[np.uint64], NDArray[np.int32], int]:
        """The buckets, the merges in the order of their buckets, the token that each rank makes, and the bits of the
        hash."""
        vocab = self._model["vocab"]
        try:
            pairs = [(vocab[left], vocab[right]) for left, right in self._model["merges"]]
            merged = [vocab[left + right] for left, right in self._model["merges"]]
        except KeyError as error:
            raise InputError(
                f"the tokenizer is broken: a merge needs the token {error}, which it does not have"
            ) from None
        numbers = np.array(pairs, np.uint64).reshape(-1, 2)
        keys = numbers[:, 0] << np.uint64(20) | numbers[:, 1]
        entries = keys << np.uint64(24) | np.arange(len(keys), dtype=np.uint64)
        starts, order, bits = _hash(keys)
        return starts, entries[order].astype("<u8"), np.array(merged, "<i4"), bits

    def _words(self, flags: int) -> tuple[NDArray[np.uint32], NDArray[np.int32], int]:
        """The same for whole tokens by their text, if the model searches for these before it merges."""
        if not flags & MODEL_IGNORE_MERGES:
            return np.zeros(0, "<u4"), np.zeros(0, "<i4"), 0
        texts = sorted((number, text) for text, number in self._model["vocab"].items() if text)
        if self._byte_level:
            alphabet = _byte_alphabet()
            texts = [(number, text) for number, text in texts if alphabet.keys() >= set(text)]
            data = [_byte_level_text(text) for _, text in texts]
        else:
            data = [text.encode() for _, text in texts]
        if any(self._tokens[number] != text for number, text in texts):
            raise refusal("ignore_merges with added tokens that the normalizer changes")
        starts, order, bits = _hash(np.array([_fnv1a(text) for text in data], np.uint64))
        return starts, np.array([number for number, _ in texts], "<i4")[order], bits

    def _word_start(self, unknown: int) -> str:
        """SentencePiece's space, if it only begins words: then words can be merged one at a time.

        That is so if no merge joins it to another character before it, and no character between two is left out.
        """
        starts = all(left.endswith(SPACE) for left, right in self._model["merges"] if right.startswith(SPACE))
        return SPACE if starts and unknown >= 0 and SPACE in self._model["vocab"] and not self._byte_level else ""

    # ---- added tokens and steps

    def _added(self) -> bytes:
        entries = []
        for token in self._data["added_tokens"]:
            content = token["content"]
            pattern = self._pattern(token)
            if not pattern:
                raise refusal(f"the added token {content!r}, which the normalizer makes empty")
            flags = sum(
                flag
                for name, flag in (
                    ("normalized", ADDED_NORMALIZED),
                    ("lstrip", ADDED_LSTRIP),
                    ("rstrip", ADDED_RSTRIP),
                    ("single_word", ADDED_SINGLE_WORD),
                )
                if token[name]
            )
            text = pattern.encode()
            prefix = len(text) - len(content.encode()) if pattern.endswith(content) else 0
            entries.append((bool(token["normalized"]), text, content.encode(), token["id"], flags, prefix))
        entries.sort()
        for one, other in itertools.pairwise(entries):
            if one[:2] == other[:2]:
                raise InputError(f"the tokenizer is broken: two added tokens have the text {one[1].decode()!r}")
        return b"".join(
            struct.pack("<4Ii2I", *self._span(content), *self._span(pattern), number, flags, prefix)
            for _, pattern, content, number, flags, prefix in entries
        )

    def _steps(self, steps: Sequence[Step]) -> bytes:
        for text in itertools.chain.from_iterable((step.first, step.second) for step in steps):
            if len(text.encode()) > MOST_STEP_BYTES:
                raise refusal(f"a replacement of more than {MOST_STEP_BYTES} bytes")
        return b"".join(
            struct.pack("<8I", *step[:4], *self._span(step.first.encode()), *self._span(step.second.encode()))
            for step in steps
        )


# ---- bytes, hashes, layout


@cache
def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for a byte → the byte (Radford et al. 2019).

    Visible characters of Latin-1 stand for themselves, the others are U+0100 and following.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _byte_level_text(text: str) -> bytes:
    """What a token of byte-level BPE decodes to: its bytes, or its text if it has other characters."""
    alphabet = _byte_alphabet()
    return bytes(map(alphabet.__getitem__, text)) if alphabet.keys() >= set(text) else text.encode()


def _fnv1a(text: bytes) -> int:
    """Fowler, Noll and Vo's hash, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in text:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def _hash(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.intp], int]:
    """Where each of 2^bits buckets begins, the order of the keys by bucket, and the bits; a bucket has about one
    key."""
    bits = max(len(keys) - 1, 0).bit_length()
    buckets = keys * np.uint64(GOLDEN) >> np.uint64(64 - bits) if bits else np.zeros_like(keys)
    order = np.argsort(buckets, kind="stable")
    starts = np.searchsorted(buckets[order], np.arange((1 << bits) + 1, dtype=np.uint64))
    return starts.astype("<u4"), order, bits


def _layout(numbers: Sequence[int], spans: Sequence[tuple[int, int]], sections: Sequence[tuple[bytes, int]]) -> bytes:
    """The header and then the sections, each at a multiple of ALIGNMENT."""
    header_bytes = 4 * (3 + len(numbers)) + 8 * (len(spans) + len(sections))
    block = bytearray(ceil_div(header_bytes, ALIGNMENT) * ALIGNMENT)
    places = []
    for data, width in sections:
        assert len(data) % width == 0
        places.append((len(block), len(data) // width))
        block += data
        block += bytes(-len(block) % ALIGNMENT)
    header = struct.pack("<3I2Ii3I", MAGIC, VERSION, len(block), *numbers)
    header += b"".join(struct.pack("<2I", *pair) for pair in (*spans, *places))
    block[: len(header)] = header
    return bytes(block)
