"""Tokenizers built from GGUF metadata and SentencePiece models give the ids of the originals.

The originals are trained here: byte-level BPE with `tokenizers` behind the pre-tokenizer that a family publishes, and
BPE with the sentencepiece library itself.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from smc.errors import InputError
from smc.frontend.config import Config
from smc.frontend.gguf_tokenizer import build_tokenizer
from smc.frontend.huggingface import open_folder
from smc.frontend.sentencepiece import read_model

TEXT = [
    "In 1969 the quick brown foxes didn't jump over 123,456 lazy dogs; they'll do it 7 times!",
    "  def f(x):\n\t\treturn x**2 + 3.14159  # comment\r\n\r\nIT'S fine — naïve café, Ünïcödé, 中文字符 and 日本語。",
    "The year 2026:   100% of $5,000 ^~|=<> (see [1], {2}) 'tis We've I'm you'd HE'LL  x  1  22  333  4444  55555",
    "<|im_start|>user\nHello there.<|im_end|>\n" * 2,
] * 4
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ORIGINALS: dict[str, Callable[[], list[Any]]] = {
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": lambda: [split(LLAMA3_WORDS), bytes_only()],
    "qwen2": lambda: [split(LLAMA3_WORDS.replace("{1,3}", "")), bytes_only()],
    "default": lambda: [
        pre_tokenizers.Punctuation("isolated"),
        split(PLAIN_WORDS),
        pre_tokenizers.Digits(),
        split("[0-9][0-9][0-9]"),
        bytes_only(),
    ],
}
"""The pre-tokenizers as the families' tokenizer.json spell them ("default" is Falcon's, with ASCII symbols apart)."""

texts = st.text(
    st.one_of(st.sampled_from("ab XY12345 \n\t'.,-s中é"), st.characters(exclude_categories=["Cs"])), max_size=60
)


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def bytes_only() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def train_byte_level(name: str) -> Tokenizer:
    """A byte-level BPE tokenizer trained on TEXT, as the family `name` sets it up."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(ORIGINALS[name]())
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def metadata_of(tokenizer: Tokenizer, name: str, **changes: Any) -> Config:
    """What a converter writes into a GGUF file for a byte-level tokenizer."""
    data = json.loads(tokenizer.to_str())
    vocab = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    values = {
        "model": "gpt2",
        "pre": name,
        "tokens": vocab,
        "token_type": [3 if token in SPECIAL else 1 for token in vocab],
        "merges": [" ".join(merge) for merge in data["model"]["merges"]],
        "add_bos_token": False,
        **changes,
    }
    return Config({f"tokenizer.ggml.{key}": value for key, value in values.items()}, "model.gguf")


def rebuilt(metadata: Config) -> Tokenizer:
    text = build_tokenizer(metadata)
    assert text is not None
    return Tokenizer.from_str(text)


@pytest.mark.parametrize("name", ORIGINALS)
def test_byte_level_ids_equal_the_original(name: str) -> None:
    original = train_byte_level(name)
    ours = rebuilt(metadata_of(original, name))
    # Symbols that are no punctuation for one of the two descriptions of "default".
    symbols = str.maketrans("", "", "`" if name == "default" else "")

    @settings(max_examples=150, deadline=None)
    @given(texts)
    def same(text: str) -> None:
        if name == "default":
            text = text.encode("ascii", errors="ignore").decode().translate(symbols)
        assert ours.encode(text).ids == original.encode(text).ids
        assert ours.decode(ours.encode(text).ids) == original.decode(original.encode(text).ids)

    same()
    for text in TEXT[:2] + [t + t[::-1] for t in TEXT[:2]]:
        if name != "default":
            assert ours.encode(text).ids == original.encode(text).ids


def test_digits_are_split_one_by_one() -> None:
    """SmolLM's splitter cuts digits first: the spaces before one stay together, away from it."""
    ours = rebuilt(metadata_of(train_byte_level("smollm"), "smollm"))
    assert ours.encode("a  12").tokens[-3:] == ["ĠĠ", "1", "2"]


def test_special_tokens_are_matched_in_the_text() -> None:
    original = train_byte_level("smollm")
    ours = rebuilt(metadata_of(original, "smollm"))
    ids = [original.token_to_id(token) for token in SPECIAL]
    assert ours.encode("<|im_start|><|im_end|>").ids == ids[1:]
    assert ours.decode([ids[1], *ours.encode("word").ids, ids[2]]) == "word"


def test_bos_and_eos_frame_a_text() -> None:
    original = train_byte_level("llama-bpe")
    framed = rebuilt(
        metadata_of(original, "llama-bpe", add_bos_token=True, add_eos_token=True, bos_token_id=1, eos_token_id=2)
    )
    plain = original.encode("some words").ids
    assert framed.encode("some words").ids == [1, *plain, 2]
    assert framed.encode("some words", add_special_tokens=False).ids == plain
    by_default = rebuilt(metadata_of(original, "llama-bpe", add_bos_token=None, bos_token_id=1))
    assert by_default.encode("some words").ids == [1, *plain]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "klingon"}, "the pre-tokenizer klingon is not supported; supported are codeshell"),
        ({"model": "t5"}, "tokenizers of the kind t5 are not supported"),
        ({"tokens": None}, "tokenizer.ggml.tokens must be a list of str"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens must be a list of str"),
        ({"token_type": [1]}, "but 1 token types"),
        ({"merges": ["zq zq"]}, "the tokenizer's merges do not fit its tokens"),
        ({"merges": ["alone"]}, "the tokenizer's merges do not fit its tokens"),
    ],
)
def test_metadata_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_tokenizer(metadata_of(train_byte_level("gpt-2"), "gpt-2", **changes))
    assert message in str(caught.value)
    assert "model.gguf" in str(caught.value)


def train_sentencepiece(**options: Any) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model trained on TEXT; by default set up as Llama's."""
    model = io.BytesIO()
    llama = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    lines = iter(line for text in TEXT for line in text.splitlines())
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **{**llama, **options})
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


SETTINGS = {
    "llama": {},
    "no prefix space": {"add_dummy_prefix": False},
    "nmt_nfkc": {"normalization_rule_name": "nmt_nfkc"},
    "nmt_nfkc, spaces removed": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "no byte fallback": {"byte_fallback": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_sentencepiece_ids_equal_the_original(tmp_path: Path, name: str) -> None:
    original = train_sentencepiece(**SETTINGS[name])
    path = tmp_path / "tokenizer.model"
    path.write_bytes(original.serialized_model_proto())
    ours = Tokenizer.from_str(read_model(path))

    @settings(max_examples=150, deadline=None)
    @given(texts)
    def same(text: str) -> None:
        # `tokenizers` finds "<s>" in a text, and puts no space before one that normalizing leaves empty.
        assume("<" not in text and (not text or ours.normalizer.normalize_str(text)))
        assert ours.encode(text, add_special_tokens=False).ids == original.encode(text)

    same()
    for text in ("\r\n", "two\r\nlines", "\r\r\n\n"):
        assert ours.encode(text, add_special_tokens=False).ids == original.encode(text)
    assert ours.encode("word").ids == [original.bos_id(), *original.encode("word")]
    assert ours.decode(ours.encode("two words").ids) == original.decode(original.encode("two words"))


def test_sentencepiece_in_gguf(tmp_path: Path) -> None:
    original = train_sentencepiece(user_defined_symbols=["[INST]"])
    count = original.get_piece_size()

    def kind(place: int) -> int:
        tests = [(original.is_unknown, 2), (original.is_control, 3), (original.is_unused, 5), (original.is_byte, 6)]
        found = next((number for test, number in tests if test(place)), 1)
        return 4 if original.id_to_piece(place) == "[INST]" else found

    values = {
        "model": "llama",
        "tokens": [original.id_to_piece(i) for i in range(count)],
        "scores": [original.get_score(i) for i in range(count)],
        "token_type": [kind(i) for i in range(count)],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    ours = rebuilt(Config({f"tokenizer.ggml.{key}": value for key, value in values.items()}, "model.gguf"))
    path = tmp_path / "tokenizer.model"
    path.write_bytes(original.serialized_model_proto())
    assert ours.to_str() == Tokenizer.from_str(read_model(path)).to_str()
    for text in ["Hello world 123", " leading", "naïve 日本 \U0001f600", "", "a  b"]:
        assert ours.encode(text).ids == [1, *original.encode(text)]
    assert ours.encode("[INST]").ids == [1, original.piece_to_id("[INST]")]


def test_unigram_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train_sentencepiece(model_type="unigram").serialized_model_proto())
    with pytest.raises(InputError, match="is no BPE model"):
        read_model(path)


def test_folder_with_only_a_sentencepiece_model(make_checkpoint: Callable[..., tuple[Path, Any]]) -> None:
    """Tokens that a fine-tune added (as Alpaca's [PAD]) get the ids that the folder declares, in both spellings."""
    folder, _ = make_checkpoint()
    original = train_sentencepiece()
    count = original.get_piece_size()
    (folder / "tokenizer.model").write_bytes(original.serialized_model_proto())
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": count}))
    added = {str(count + 1): {"content": "<|im_end|>", "special": True}, "1": {"content": "<s>", "special": True}}
    config = {"pad_token": "[PAD]", "eos_token": "<|im_end|>", "add_bos_token": False, "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    checkpoint = open_folder(folder)
    assert checkpoint.tokenizer is not None
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer)
    assert tokenizer.encode("[PAD]some words").ids == [count, *original.encode("some words")]
    assert tokenizer.token_to_id("<|im_end|>") == count + 1
    assert checkpoint.generation.eos_token_ids[-1] == count + 1
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": count + 5}))
    with pytest.raises(InputError, match="the added token"):
        open_folder(folder)
