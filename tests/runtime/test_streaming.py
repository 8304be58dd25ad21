"""Pieces of text: whole characters, spaces at the seams, stop strings never in part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from smc.runtime.streaming import Detokenizer, StopStrings
from tests.runtime.conftest import byte_tokenizer


def pieces(tokenizer: Tokenizer, tokens: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt or [])
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


def byte_ids(data: bytes) -> list[int]:
    """The tokens of any bytes, valid UTF-8 or not."""
    tokenizer = byte_tokenizer()
    by_byte = {tokenizer.decode([i]).encode(): i for i in range(256) if "\ufffd" not in tokenizer.decode([i])}
    alphabet = byte_alphabet()
    return [by_byte.get(bytes([b]), tokenizer.token_to_id(alphabet[b])) for b in data]


def byte_alphabet() -> dict[int, str]:
    """GPT-2's bytes_to_unicode."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    table |= {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in table)}
    return table


BYTES = byte_tokenizer()


@given(st.text())
def test_text_of_byte_tokens_comes_out_whole(text: str):
    parts = pieces(BYTES, BYTES.encode(text, add_special_tokens=False).ids)
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


@given(st.binary(max_size=12), st.text(max_size=4))
def test_invalid_bytes_become_replacement_characters(data: bytes, text: str):
    """As a decoder of the whole would have it."""
    tokens = byte_ids(data) + byte_ids(text.encode())
    assert "".join(pieces(BYTES, tokens)) == (data + text.encode()).decode("utf-8", "replace")


def test_characters_come_with_their_last_byte():
    assert pieces(BYTES, byte_ids("a€b".encode())) == ["a", "", "", "€", "b", ""]
    assert pieces(BYTES, byte_ids("é".encode()[:1])) == ["", "\ufffd"]


def test_endless_broken_bytes_come_out():
    shown = pieces(BYTES, byte_ids(b"\xff" * 500))
    assert "".join(shown) == "\ufffd" * 500
    assert sum(map(bool, shown)) > 400


def test_special_tokens_are_no_text():
    assert "".join(pieces(BYTES, [*byte_ids(b"a"), 257, *byte_ids(b"b"), 258])) == "ab"


def sentencepiece_tokenizer() -> Tokenizer:
    """Llama 2's kind: ▁ for spaces, byte fallback, the first space of a text dropped."""
    words = ["<unk>", "▁", "▁Hello", "▁world", "!", "lo"]
    vocab = {word: i for i, word in enumerate(words)} | {f"<0x{b:02X}>": len(words) + b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def test_spaces_between_sentencepiece_tokens():
    tokenizer = sentencepiece_tokenizer()
    hello, world, mark = 2, 3, 4
    assert pieces(tokenizer, [hello, world, mark]) == ["Hello", " world", "!", ""]
    assert pieces(tokenizer, [world, mark], prompt=[hello]) == [" world", "!", ""]


def test_byte_fallback():
    tokenizer = sentencepiece_tokenizer()
    euro = [6 + b for b in "€".encode()]
    assert pieces(tokenizer, [2, *euro, 4]) == ["Hello", "", "", "€", "!", ""]
    assert pieces(tokenizer, euro, prompt=[2]) == ["", "", "€", ""]
    assert pieces(tokenizer, [2, *euro[:2], 4]) == ["Hello", "", "", "\ufffd\ufffd!", ""]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("text", "stops", "expected", "stopped"),
    [
        ("one two END three", ["END"], "one two ", True),
        ("one two EN", ["END"], "one two EN", False),
        ("aaab", ["aab"], "a", True),
        ("ababac", ["abac"], "ab", True),
        ("x\n\nUser: y", ["User:", "\n\n"], "x", True),
        ("say Hi there", ["there", "Hi"], "say ", True),
        ("nothing", [], "nothing", False),
        ("nothing", [""], "nothing", False),
        ("END", ["END"], "", True),
    ],
)
def test_stop_strings(text: str, stops: list[str], expected: str, stopped: bool, size: int):
    stream = StopStrings(stops)
    shown = [stream.push(text[i : i + size]) for i in range(0, len(text), size)]
    shown.append(stream.flush())
    assert "".join(shown) == expected
    assert stream.stopped == stopped


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_stop_strings_are_never_shown_in_part(text: str, stops: list[str], size: int):
    stream = StopStrings(stops)
    shown = "".join(stream.push(text[i : i + size]) for i in range(0, len(text), size)) + stream.flush()
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)
    if not stream.stopped:
        assert shown == text


def test_text_is_shown_as_soon_as_it_is_no_stop_string():
    stream = StopStrings(["END"])
    assert [stream.push(c) for c in "aENxE"] == ["a", "", "", "ENx", ""]
