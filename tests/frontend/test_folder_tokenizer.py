"""Tokenizers of Hugging Face folders: ids and texts of transformers, wherever the folder names its tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.tokenization_utils_base import generate_merges

from smc.errors import InputError
from smc.frontend.folder_tokenizer import FolderTokenizer, folder_tokenizer
from smc.frontend.gguf_tokenizer import cl100k
from smc.standalone.tokenizer_tables import tokenizer_tables
from tests.frontend.test_tokenizers import TEXT, train_sentencepiece

MARKERS = ("<|im_start|>", "<|im_end|>")
TEXTS = [
    "<|im_start|>user\nHello <|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|>b  <|im_start|>  \n c <think> d",
    " x<|im_end|><|im_end|> 12  345 <|pad|>y",
    "<s>[INST] Hi [/INST] there</s><s>  two",
    "plain words, nothing  else\n",
    "",
]
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

Files = dict[str, Any]


@cache
def trained() -> str:
    """Byte-level BPE with one special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return str(tokenizer.to_str())


def byte_level(*added: AddedToken) -> Tokenizer:
    """The trained tokenizer and `added`."""
    tokenizer = Tokenizer.from_str(trained())
    tokenizer.add_tokens(list(added))
    return tokenizer


def decoder(first: int, **flags: bool) -> dict[str, Any]:
    """`added_tokens_decoder` with the markers from id `first` on."""
    return {str(first + i): {"content": text, **PLAIN, **flags} for i, text in enumerate(MARKERS)}


def write(folder: Path, files: Files, model_type: str = "llama") -> Path:
    folder.mkdir(exist_ok=True)
    files = {"config.json": {"model_type": model_type, "architectures": ["LlamaForCausalLM"]}, **files}
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def assert_equal(ours: FolderTokenizer, theirs: Any) -> None:
    assert ours.text is not None
    tokenizer = Tokenizer.from_str(ours.text)
    for text in TEXTS:
        for special in (False, True):
            ids = theirs.encode(text, add_special_tokens=special)
            assert tokenizer.encode(text, add_special_tokens=special).ids == ids, (text, special)
            assert tokenizer.decode(ids, skip_special_tokens=special) == theirs.decode(ids, skip_special_tokens=special)
    assert ours.eos == theirs.eos_token_id
    assert ours.named == theirs.special_tokens_map
    assert tokenizer.get_vocab_size() == len(theirs)


def sources() -> dict[str, Files]:
    """Every way of naming the markers; the base tokenizer ends at `size`."""
    size = byte_level().get_vocab_size()
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    kept = byte_level(*(AddedToken(text, normalized=False, special=True) for text in MARKERS)).to_str()
    soft = byte_level(*(AddedToken(text, normalized=True) for text in MARKERS)).to_str()
    bare, ids = byte_level().to_str(), {text: size + i for i, text in enumerate(MARKERS)}

    def config(tokenizer: str = bare, **settings: Any) -> Files:
        return {"tokenizer.json": tokenizer, "tokenizer_config.json": {**fast, **settings}}

    end = {"eos_token": MARKERS[1]}
    typed = {"__type": "AddedToken", "content": MARKERS[1], **PLAIN, "lstrip": True}
    return {
        "tokenizer.json alone": {"tokenizer.json": kept},
        "not special": {"tokenizer.json": soft},
        "added_tokens_decoder": config(**end, added_tokens_decoder=decoder(size)),
        "added_tokens.json": {**config(**end), "added_tokens.json": ids},
        "added_tokens.json, tokens in it special by name": {
            **config(**end, additional_special_tokens=[MARKERS[0]]),
            "added_tokens.json": ids,
        },
        "special_tokens_map.json": {
            **config(),
            "special_tokens_map.json": {"eos_token": {"content": MARKERS[1], **PLAIN}, "pad_token": "<|pad|>"},
        },
        "special_tokens_map.json beside a decoder": {
            **config(added_tokens_decoder=decoder(size)),
            "special_tokens_map.json": {"eos_token": "<|pad|>"},
        },
        "extra_special_tokens": config(extra_special_tokens=list(MARKERS)),
        "extra_special_tokens by name": config(extra_special_tokens={"turn_token": MARKERS[0]}, **end),
        "additional_special_tokens": config(additional_special_tokens=list(MARKERS), **end),
        "a name of the model's own": config(image_token=MARKERS[0], **end),
        "a token as an object": config(eos_token=typed),
        "named only": config(pad_token="<|pad|>", **end),
        "rstrip in the config": config(kept, added_tokens_decoder=decoder(size, rstrip=True), **end),
        "lstrip in the config": config(kept, added_tokens_decoder=decoder(size, lstrip=True), **end),
        "single_word in the config": config(kept, added_tokens_decoder=decoder(size, single_word=True), **end),
        "normalized in the config": config(kept, added_tokens_decoder=decoder(size, normalized=True), **end),
        "special in tokenizer.json": config(kept, added_tokens_decoder=decoder(size, special=False)),
        "special in the config": config(soft, added_tokens_decoder=decoder(size), **end),
        "special by name": config(soft, **end),
        "another class with byte-level BPE": config(tokenizer_class="LlamaTokenizer", **end),
        "defaults of GPT-2's class": config(tokenizer_class="GPT2Tokenizer", extra_special_tokens=list(MARKERS)),
        "add_bos_token beside a tokenizer.json": config(add_bos_token=True, bos_token="<|endoftext|>", **end),
    }


@pytest.mark.parametrize("name", sources())
def test_added_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model", sources()[name])
    ours = folder_tokenizer(folder, "llama")
    assert_equal(ours, transformers.AutoTokenizer.from_pretrained(folder))
    assert ours.text is not None
    tokenizer_tables(ours.text)  # an executable can have it


def test_an_unchanged_file_is_kept_as_it_is(tmp_path: Path) -> None:
    text = byte_level().to_str(pretty=True)
    ours = folder_tokenizer(write(tmp_path / "model", {"tokenizer.json": text}), "llama")
    assert ours.text == text


@cache
def sentencepiece_model() -> sentencepiece.SentencePieceProcessor:
    return train_sentencepiece(user_defined_symbols=["[INST]"])


def sentencepiece_files(**settings: Any) -> tuple[Callable[[Path], Path], Any]:
    """A writer of tokenizer.model with a config, and what transformers makes of the same."""
    model = sentencepiece_model()
    vocabulary = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    symbols = [AddedToken(text, normalized=False, special=text != "[INST]") for text in ("<s>", "</s>", "[INST]")]
    theirs = transformers.LlamaTokenizer(
        vocabulary, generate_merges(vocabulary), additional_special_tokens=symbols, **settings
    )

    def make(folder: Path) -> Path:
        write(folder, {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", **settings}})
        (folder / "tokenizer.model").write_bytes(model.serialized_model_proto())
        return folder

    return make, theirs


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"legacy": False},
        {"legacy": True},
        {"legacy": True, "add_prefix_space": False},
        {"legacy": False, "add_prefix_space": True, "add_bos_token": True},
        {"add_bos_token": True, "add_eos_token": True, "eos_token": "<unk>"},
        {"legacy": False, "pad_token": "<|pad|>", "add_eos_token": True},
    ],
    ids=str,
)
def test_settings_beside_a_sentencepiece_model(tmp_path: Path, settings: dict[str, Any]) -> None:
    make, theirs = sentencepiece_files(**settings)
    ours = folder_tokenizer(make(tmp_path / "model"), "llama")
    assert_equal(ours, theirs)
    assert ours.text is not None
    tokenizer_tables(ours.text)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_class_of_llama_says_how_spaces_are_treated(tmp_path: Path, legacy: bool) -> None:
    """transformers takes the vocabulary of a tokenizer.json and treats spaces as the config says."""
    make, _ = sentencepiece_files()
    plain = folder_tokenizer(make(tmp_path / "plain"), "llama").text
    assert plain is not None
    config = {"tokenizer_class": "LlamaTokenizerFast", "legacy": legacy, "add_bos_token": True}
    folder = write(tmp_path / "model", {"tokenizer.json": plain, "tokenizer_config.json": config})
    assert_equal(folder_tokenizer(folder, "llama"), transformers.AutoTokenizer.from_pretrained(folder))


def test_a_tokenizer_of_mistrals_is_as_its_file_says(tmp_path: Path) -> None:
    make, _ = sentencepiece_files(legacy=True)
    plain = folder_tokenizer(make(tmp_path / "plain"), "llama").text
    assert plain is not None
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "eos_token": "</s>", "bos_token": "<s>"}
    config["unk_token"] = "<unk>"
    folder = write(tmp_path / "model", {"tokenizer.json": plain, "tokenizer_config.json": config}, "mistral")
    assert_equal(folder_tokenizer(folder, "mistral"), transformers.AutoTokenizer.from_pretrained(folder))


def test_a_sentencepiece_model_alone_is_as_sentencepiece_has_it(tmp_path: Path) -> None:
    model = sentencepiece_model()
    (tmp_path / "tokenizer.model").write_bytes(model.serialized_model_proto())
    text = folder_tokenizer(tmp_path, "llama").text
    assert text is not None
    assert Tokenizer.from_str(text).encode("Two  words").ids == [model.bos_id(), *model.encode("Two  words")]


@pytest.mark.parametrize("kind", [None, "GPT2Tokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast"])
@pytest.mark.parametrize("more", [{}, {"add_prefix_space": True}, {"add_bos_token": True, "bos_token": "<|im_start|>"}])
def test_vocabulary_and_merges(tmp_path: Path, kind: str | None, more: dict[str, Any]) -> None:
    original = byte_level()
    if kind and kind.startswith("Qwen2"):
        original.pre_tokenizer = pre_tokenizers.Split(Regex(cl100k(r"\p{N}")), "isolated")
    data, size = json.loads(original.to_str())["model"], original.get_vocab_size()
    merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in data["merges"])]) + "\n"
    settings = {"added_tokens_decoder": decoder(size), "eos_token": "<|im_end|>", **more}
    config = {**settings, "tokenizer_class": kind} if kind else settings
    files = {"vocab.json": data["vocab"], "merges.txt": merges, "tokenizer_config.json": config}
    ours = folder_tokenizer(write(tmp_path / "model", files), "llama")
    named = {"tokenizer_class": kind or "GPT2Tokenizer"}
    theirs = write(tmp_path / "theirs", {**files, "tokenizer_config.json": {**settings, **named}})
    if kind is None:  # a folder that names no class has no defaults of one either
        ours.named.update({"bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", **ours.named})
    assert_equal(ours, transformers.AutoTokenizer.from_pretrained(theirs))
    assert ours.text is not None
    tokenizer_tables(ours.text)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tekken.json": {}}, "tekken.json is Mistral's tekken.json, which can't be read"),
        ({"vocab.txt": "a\nb"}, "vocab.txt is a WordPiece vocabulary"),
        ({"qwen.tiktoken": "YQ== 0"}, "qwen.tiktoken is a tiktoken vocabulary"),
        ({"vocab.json": {"a": 0}, "merges.txt": "a b"}, "merges.txt does not fit vocab.json"),
        ({"vocab.json": {"a": 0}, "merges.txt": "a b c"}, "merges.txt does not fit vocab.json"),
        ({"vocab.json": {"a": -1}, "merges.txt": ""}, "vocab.json must give a token id for every token"),
        (
            {"vocab.json": {"a": 0}, "merges.txt": "", "tokenizer_config.json": {"tokenizer_class": "BartTokenizer"}},
            "for a BartTokenizer, which can't be read without a tokenizer.json",
        ),
        ({"tokenizer.json": "{}"}, "is not a tokenizer file that smc can read"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": "y"}}}}, "x must be a token"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"1": {"content": "y", "lstrip": 3}}}}, "1 must be a"),
        ({"tokenizer_config.json": {"extra_special_tokens": "<a>"}}, "extra_special_tokens must be a list of tokens"),
        ({"added_tokens.json": {"<a>": "7"}}, "<a> must be a token id"),
    ],
)
def test_what_can_not_be_read_is_named(tmp_path: Path, files: Files, message: str) -> None:
    with pytest.raises(InputError) as caught:
        folder_tokenizer(write(tmp_path / "model", files), "llama")
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


def test_an_id_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    size = byte_level().get_vocab_size()
    config = {"added_tokens_decoder": decoder(size + 3)}
    folder = write(tmp_path / "model", {"tokenizer.json": byte_level().to_str(), "tokenizer_config.json": config})
    with pytest.raises(InputError, match=rf"'<\|im_start\|>' should have id {size + 3}.* next id is {size}"):
        folder_tokenizer(folder, "llama")
