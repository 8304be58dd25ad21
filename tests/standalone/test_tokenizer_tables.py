"""Tables of the native tokenizer: deterministic and small, and what can't be done exactly is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from smc.errors import InputError
from smc.frontend.gguf_tokenizer import SPLITTINGS
from smc.standalone.tokenizer_parts import PATTERNS
from smc.standalone.tokenizer_tables import tokenizer_tables


def byte_level(**options: Any) -> Tokenizer:
    """The bytes and one merge."""
    tokens = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"ab": 256}
    tokenizer = Tokenizer(models.BPE(tokens, [("a", "b")], **options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def changed(**parts: Any) -> Tokenizer:
    tokenizer = byte_level()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def edited(**model: Any) -> str:
    """The model of tokenizer.json changed."""
    data = json.loads(byte_level().to_str())
    data["model"] |= model
    return json.dumps(data)


def sequence(*steps: Any) -> Tokenizer:
    return changed(pre_tokenizer=pre_tokenizers.Sequence(list(steps)))


def with_frame(single: str) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single, None, [("<s>", 257)])
    return tokenizer


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


UNIGRAM = Tokenizer(models.Unigram([("a", 0.0)], unk_id=0))
WORD_PIECE = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
DIGITS, TO_BYTES = r"\p{N}", pre_tokenizers.ByteLevel(use_regex=False)

REFUSED: dict[str, Callable[[], Tokenizer | str]] = {
    "kind Unigram": lambda: UNIGRAM,
    "kind WordPiece": lambda: WORD_PIECE,
    "normalizer NFKC": lambda: changed(normalizer=normalizers.NFKC()),
    "normalizer Lowercase": lambda: changed(
        normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    ),
    "normalizer ByteLevel": lambda: changed(normalizer=normalizers.ByteLevel()),
    "Replace of the pattern ' \\{2,}'": lambda: changed(normalizer=normalizers.Replace(Regex(" {2,}"), " ")),
    "more than 64 bytes": lambda: changed(normalizer=normalizers.Replace("a", "b" * 65)),
    "pre-tokenizer Whitespace": lambda: sequence(pre_tokenizers.Whitespace(), TO_BYTES),
    "pre-tokenizer Digits after ByteLevel": lambda: sequence(TO_BYTES, pre_tokenizers.Digits()),
    r"regular expression '\\\\w\+'": lambda: sequence(split(r"\w+"), TO_BYTES),
    "Split that is Removed": lambda: sequence(split(DIGITS, "removed"), TO_BYTES),
    "Split that is Removed and inverted": lambda: sequence(split(DIGITS, "removed", True), TO_BYTES),
    "Split that is MergedWithNext": lambda: sequence(split(DIGITS, "merged_with_next"), TO_BYTES),
    "prepend scheme first": lambda: changed(
        normalizer=normalizers.Prepend("▁"),
        pre_tokenizer=pre_tokenizers.Metaspace("▁", "first"),
        decoder=decoders.Metaspace(),
    ),
    "decoder None": lambda: Tokenizer(models.BPE({"a": 0}, [])),
    "decoder WordPiece": lambda: changed(pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.WordPiece()),
    r"decoder Fuse \+ ByteFallback": lambda: changed(
        pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()])
    ),
    "another kind than its pre-tokenizer": lambda: changed(decoder=decoders.Fuse()),
    "BPE with dropout": lambda: edited(dropout=0.1),
    "BPE with continuing_subword_prefix": lambda: edited(continuing_subword_prefix="##", merges=[]),
    "BPE with end_of_word_suffix": lambda: edited(end_of_word_suffix="</w>"),
    "byte fallback with a byte-level": lambda: edited(byte_fallback=True),
    "can't be read .*out of vocabulary": lambda: edited(merges=[["a", "c"]]),
    "two tokens have the same id": lambda: edited(vocab={"a": 0, "b": 1, "ab": 1}),
    "token '<unk>' is not in its vocabulary": lambda: edited(unk_token="<unk>"),
    "ids up to 1048576": lambda: edited(vocab={"a": 0, "b": 1, "ab": 1 << 20}),
    "text other than once": lambda: with_frame("<s> $A $A"),
    "can't be read": lambda: "{",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_exactly_is_refused_by_name(name: str) -> None:
    tokenizer = REFUSED[name]()
    with pytest.raises(InputError, match=name):
        tokenizer_tables(tokenizer if isinstance(tokenizer, str) else tokenizer.to_str())


def test_added_tokens_that_look_alike_after_normalization_are_refused() -> None:
    tokenizer = changed(normalizer=normalizers.NFC())
    tokenizer.add_tokens([AddedToken("e\u0301", normalized=True)])
    tokenizer.add_tokens([AddedToken("\xe9", normalized=False)])
    tokenizer_tables(tokenizer.to_str())  # one is looked for before, the other after
    data = json.loads(tokenizer.to_str())
    for token in data["added_tokens"]:
        token["normalized"] = True
    with pytest.raises(InputError, match=r"can't be read|two added tokens have the text"):
        tokenizer_tables(json.dumps(data))


def test_the_same_tokenizer_gives_the_same_bytes() -> None:
    text = byte_level().to_str()
    reordered = json.loads(text)
    reordered["model"]["vocab"] = dict(reversed(reordered["model"]["vocab"].items()))
    assert tokenizer_tables(text) == tokenizer_tables(text) == tokenizer_tables(json.dumps(reordered))


def test_every_splitting_of_gguf_files_is_known() -> None:
    assert {pattern for splitting in SPLITTINGS.values() for pattern in splitting.patterns} <= PATTERNS.keys()


def test_what_does_nothing_is_no_obstacle() -> None:
    """Truncation and padding, which smc turns off; and parts that are empty."""
    tokenizer = byte_level(dropout=0.0, continuing_subword_prefix="", end_of_word_suffix="")
    plain = tokenizer_tables(tokenizer.to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    tokenizer.normalizer = normalizers.Sequence([])
    assert tokenizer_tables(tokenizer.to_str()) == plain


def test_an_empty_vocabulary_has_tables() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.decoder = decoders.Fuse()
    assert len(tokenizer_tables(tokenizer.to_str())) < 500
