"""A calibration text: the windows of it, what is refused, and what it is good for on a real model."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import smc
from benchmarks.models import glassllm
from smc.cli.main import run
from smc.errors import InputError
from smc.reference import SHIPPED_TEXT, CalibrationText, Reference, evaluate, text_windows
from smc.reference.text import read_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "glassllm"
    glassllm(path)
    return path


@pytest.fixture(scope="module")
def texts(folder):
    """Two texts that glassllm made up, for there is no better sample of what it was trained on."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    begin = torch.full((44, 1), 2)
    written = model.generate(
        begin, attention_mask=torch.ones_like(begin), do_sample=True, top_k=0, min_new_tokens=126, max_new_tokens=126
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    lines = [tokenizer.decode(line) for line in written.tolist()]
    return "\n".join(lines[:32]), "\n".join(lines[32:])


def test_gptq_beats_rounding_to_nearest(folder, texts, tmp_path):
    """A calibration text and another to judge by; int8 activations and the tied head are in both."""
    calibration, other = (tmp_path / name for name in ("calibration.txt", "other.txt"))
    calibration.write_text(texts[0], encoding="utf-8")
    other.write_text(texts[1], encoding="utf-8")
    module = smc.load_checkpoint(folder)
    windows = text_windows(read_tokens(other, module.facts.tokenizer, module.facts.vocab_size), 128)
    expected = Reference(module).logits
    nearest, calibrated = (
        evaluate(Reference(smc.apply(module, [f"{name}:bits=4"], calibration)).logits, windows, expected)
        for name in ("quantize-rtn", "quantize-gptq")
    )
    assert calibrated.kl_divergence < 0.87 * nearest.kl_divergence


def test_windows_are_spread_over_the_text(folder, texts, tmp_path, monkeypatch):
    from smc.reference import calibration

    monkeypatch.setattr(calibration, "MOST_WINDOWS", 4)
    path = tmp_path / "calibration.txt"
    path.write_text(texts[0], encoding="utf-8")
    facts = smc.load_checkpoint(folder).facts
    tokens = read_tokens(path, facts.tokenizer, facts.vocab_size)
    text = CalibrationText.read(path, facts)
    count = len(tokens) // 128
    held = count // calibration.HELD_OUT_SHARE
    assert 0 < held < calibration.MOST_HELD_OUT
    apart = [(2 * i + 1) * count // (2 * held) for i in range(held)]
    rest = [i for i in range(count) if i not in apart]
    for places, windows in ((apart, text.held_out), ([rest[i * len(rest) // 4] for i in range(4)], text.windows)):
        assert [tokens[128 * place :][:128] for place in places] == [window.tolist() for window in windows]


BAD = [
    (b"Once upon a time.", "is too short: it has 7 tokens, and at least 1,024 are needed, better 12,288"),
    (b" \n\n", "calibration.txt is empty"),
    (b"", "calibration.txt is empty"),
    (bytes(range(256)) * 8, "calibration.txt is not UTF-8 text (see byte 128)"),
    (b"text\0" * 900, "calibration.txt is not a text: it has a zero byte"),
    ("съешь ещё этих мягких французских булок ".encode() * 90, "tokenizer does not know"),
]


@pytest.mark.parametrize(("data", "message"), BAD, ids=["short", "blank", "empty", "bytes", "zeros", "alphabet"])
def test_bad_texts_are_told_in_a_sentence(folder, tmp_path, capsys, data, message):
    path, out = tmp_path / "calibration.txt", tmp_path / "model.smc"
    path.write_bytes(data)
    arguments = ["compile", str(folder), "-p", "quantize-gptq", "--calib", str(path), "-o", str(out)]
    assert run(arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last
    assert not out.exists()


def test_the_text_that_comes_with_smc(folder, tmp_path):
    """Enough of it for all windows, in pieces whose kinds are mixed."""
    text = SHIPPED_TEXT.read_text(encoding="utf-8")
    assert len(CalibrationText.read(SHIPPED_TEXT, smc.load_checkpoint(folder).facts).windows) == 96
    for part in (text[: len(text) // 2], text[len(text) // 2 :]):
        assert "    def " in part  # code
        assert "Assistant: " in part  # chat
        assert re.search("[а-я]{5}", part)  # other languages
        assert "\n== " in part  # articles


def test_a_model_without_a_tokenizer_cannot_read(folder, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time.")
    facts = smc.load_checkpoint(folder).facts
    with pytest.raises(InputError, match="the model has no tokenizer"):
        CalibrationText.read(path, replace(facts, tokenizer=None))
    with pytest.raises(InputError, match="but the model has 5 tokens"):
        read_tokens(path, facts.tokenizer, 5)
    with pytest.raises(InputError, match="there is no text file"):
        CalibrationText.read(tmp_path / "none", facts)


def test_tune_needs_no_text(folder):
    """Only encodings and shapes are wanted there."""
    from smc.cli.pass_options import read_requests, run_requests

    module = smc.load_checkpoint(folder)
    result = run_requests(module, read_requests(["quantize-gptq"], None, None), lazy=True)
    assert {str(p.encoding) for p in result.parameters.values()} == {"int4.g32", "f32"}
