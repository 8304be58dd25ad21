"""N-gram models against a plain reading of interpolated Kneser-Ney smoothing with dictionaries."""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smc.cli import main
from smc.errors import InputError
from smc.runtime.ngram import NgramModel
from tests.runtime.conftest import byte_tokenizer

VOCAB = 6


def plain_probability(text: list[int], order: int, context: list[int], token: int) -> float:
    """Chen and Goodman's formula, one n-gram at a time."""
    grams = {n: Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for n in range(1, order + 1)}

    def count(n: int, gram: tuple[int, ...]) -> int:
        return grams[order][gram] if n == order else sum(longer[1:] == gram for longer in grams[n + 1])

    probability = 1 / VOCAB
    for n in range(1, order + 1):
        if n - 1 > len(context):
            break
        counts = {gram: count(n, gram) for gram in grams[n]}
        once, twice = (sum(c == wanted for c in counts.values()) for wanted in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        past = tuple(context[len(context) - n + 1 :])
        following = {gram[-1]: c for gram, c in counts.items() if gram[:-1] == past}
        total = sum(following.values())
        if total:
            seen = sum(c > 0 for c in following.values())
            own = max(following.get(token, 0) - discount, 0) / total
            probability = own + discount * seen / total * probability
    return probability


@given(st.lists(st.integers(0, VOCAB - 1), min_size=4, max_size=40), st.integers(1, 4), st.data())
@settings(max_examples=60)
def test_probabilities(text: list[int], order: int, data: st.DataObject) -> None:
    model = NgramModel.build(text, VOCAB, "", order)
    context = data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=6))
    found = model.probabilities(context)
    assert found.sum() == pytest.approx(1)
    expected = [plain_probability(text, order, context, token) for token in range(VOCAB)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    best = model.predict(context, 3)
    assert [token for token, _ in best] == sorted(range(VOCAB), key=lambda t: (-found[t], t))[:3]


def test_guesses_go_on_as_the_text_does() -> None:
    text = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1]
    model = NgramModel.build(text, VOCAB, "", 3)
    assert model.propose([5, 0, 1], 4) == [2, 3, 4, 5]
    assert model.propose([9, 2], 2) == [3, 4]
    assert model.propose([5, 5, 5], 2)[:1] == [0]
    assert model.propose([], 3) == []
    assert model.ngrams == len({*text}) + len({*pairwise(text)}) + 6


@pytest.mark.parametrize(
    ("size", "order", "part"),
    [(3, 4, "3 tokens, but n-grams of 4 need at least 4"), (9, 0, "1 to 8"), (9, 9, "1 to 8")],
)
def test_what_cannot_be_counted(size: int, order: int, part: str) -> None:
    with pytest.raises(InputError, match=part):
        NgramModel.build([1] * size, VOCAB, "", order)


# ---- files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    text = byte_tokenizer().encode("the cat sat on the mat, and the cat ran to the man on the mat.\n" * 3).ids
    NgramModel.build(text, 259, byte_tokenizer().to_str()).save(tmp_path / "cats.ngram")
    return tmp_path / "cats.ngram"


def test_a_file_keeps_all(file: Path) -> None:
    model, again = NgramModel.load(file), NgramModel.load(file)
    again.save(file)
    for context in ([], [3], byte_tokenizer().encode("the c").ids):
        np.testing.assert_array_equal(NgramModel.load(file).probabilities(context), model.probabilities(context))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_damaged_files_are_refused(file: Path) -> None:
    content, source = file.read_bytes(), random.Random(1)
    for _ in range(200):
        damaged = bytearray(content)
        if source.random() < 0.3:
            del damaged[source.randrange(len(damaged)) :]
        else:
            place = source.randrange(len(damaged))
            damaged[place : place + 4] = source.randbytes(4)
        file.write_bytes(damaged)
        with contextlib.suppress(InputError):
            NgramModel.load(file).predict([1, 2, 3], 2)


@pytest.mark.parametrize(
    ("name", "values"), [("starts2", [5, 4]), ("tokens1", [-1]), ("tokens1", [259]), ("counts3", [1])]
)
def test_contradictory_files_are_refused(file: Path, name: str, values: list[int]) -> None:
    with np.load(file) as archive:
        arrays = dict(archive)
    part = arrays[name].copy()
    arrays[name] = (
        part[: len(values)] if name == "counts3" else np.concatenate([part[:-1], values[-1:]]).astype(part.dtype)
    )
    with file.open("wb") as opened:
        np.savez(opened, **arrays)
    with pytest.raises(InputError, match="is not an n-gram model"):
        NgramModel.load(file)


# ---- the command


def test_build_and_predict(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "notes.txt", tmp_path / "notes.ngram"
    text.write_text("red roses and red wine and red roses\n" * 4)
    assert main.run(["ngram", "build", str(artifact), str(text), "-o", str(out)]) == 0
    assert "n-grams of 1 to 5 tokens from" in capsys.readouterr().err
    assert main.run(["ngram", "predict", str(out), "wine and re", "-n", "2", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["text"] == "d" and first["probability"] > 0.9 > second["probability"]
    plain = ["run", str(artifact), "--raw", "red roses", "-n", "12", "--json"]
    texts = []
    for draft in ([], ["--draft", str(out)], ["--draft", "lookup"], ["--draft", str(artifact)]):
        assert main.run(plain + draft) == 0
        texts.append(json.loads(capsys.readouterr().out)["tokens"])
    assert texts == [texts[0]] * 4


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (["ngram", "build", "{artifact}", "{missing}"], "missing"),
        (["ngram", "build", "{artifact}", "{binary}"], "binary is not UTF-8 text"),
        (["ngram", "build", "{artifact}", "{text}", "-o", "{text}"], "holds something else than the n-gram"),
        (["ngram", "build", "{artifact}", "{text}", "--order", "99"], "from 1 to 8, not 99"),
        (["ngram", "predict", "{artifact}", "a"], "is not an n-gram model"),
        (["ngram", "predict", "{missing}", "a"], "there is no n-gram model"),
        (["run", "{artifact}", "a", "--draft", "{missing}"], "there is no file"),
        (["run", "{artifact}", "a", "--draft", "{other}"], "it was built with another tokenizer"),
    ],
)
def test_bad_input(artifact: Path, tmp_path: Path, command: list[str], part: str, capsys: pytest.CaptureFixture[str]):
    names = {name: str(tmp_path / name) for name in ("missing", "binary", "text", "other")}
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00" * 9)
    (tmp_path / "text").write_text("some words, but few\n")
    NgramModel.build([1, 2, 3, 4, 5], 259, "another").save(tmp_path / "other")
    assert main.run([word.format(artifact=artifact, **names) for word in command]) == 2
    assert part in capsys.readouterr().err
