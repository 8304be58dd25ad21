"""`smc eval`: its figures beside transformers, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.models import glassllm
from smc.cli.main import run

TEXT = "Alice was beginning to get very tired of sitting by her sister, and of having nothing to do. “What is the use "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "glassllm"
    glassllm(path)
    return path


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 8, encoding="utf-8")
    return path


def figures(capsys, *arguments):
    assert run(["eval", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_figures_are_those_of_transformers(folder, text, capsys):
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT * 8).ids)
    windows = tokens[: len(tokens) // 64 * 64].view(-1, 64)[:3]
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            model(windows).logits[:, :-1].transpose(1, 2), windows[:, 1:], reduction="none"
        )
    found = figures(capsys, folder, "--text", text, "--against", folder, "--window", 64, "--windows", 3)
    assert (found["windows"], found["window"]) == (3, 64)
    assert found["perplexity"]["full"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    assert found["perplexity"]["second_half"] == pytest.approx(math.exp(losses[:, 32:].mean()), rel=1e-4)
    assert found["tokens"] == {"full": 3 * 63, "second_half": 3 * 31}
    assert found["bits_per_weight"] == pytest.approx(16, abs=0.1)
    assert found["kl_divergence"]["mean"] == 0
    assert found["same_top_token"] == 1


def test_passes_are_judged_against_the_model_without(folder, text, capsys):
    mild, strong = (
        figures(capsys, folder, "--text", text, "--against", folder, "-p", f"quantize-rtn:bits={bits}")
        for bits in (8, 3)
    )
    assert mild["bits_per_weight"] == pytest.approx(8.5, abs=0.1)
    assert mild["window"] == 128  # the model's context
    assert 0 < mild["kl_divergence"]["mean"] < strong["kl_divergence"]["mean"] / 10
    assert strong["kl_divergence"]["median"] < strong["kl_divergence"]["99 %"]
    assert strong["same_top_token"] < mild["same_top_token"]


def test_the_table(folder, text, capsys):
    assert run(["eval", str(folder), "--text", str(text)]) == 0
    captured = capsys.readouterr()
    assert "perplexity" in captured.out
    assert "KL divergence" not in captured.out
    assert "evaluate: " in captured.err  # what took how long


@pytest.mark.slow
def test_a_budget_is_judged(folder, text, tmp_path, capsys):
    """Calibrated on the text that comes with smc; the work folder keeps what another budget goes on from."""
    work = tmp_path / "work"
    small, large = (
        figures(capsys, folder, "--text", text, "--against", folder, "--bits", bits, "--work", work)
        for bits in (4.6, 6.6)
    )
    assert 4.4 < small["bits_per_weight"] <= 4.6
    assert 6.4 < large["bits_per_weight"] <= 6.6
    assert large["kl_divergence"]["mean"] < 0.3 * small["kl_divergence"]["mean"] < 0.02
    (state,) = work.iterdir()
    assert len(list(state.glob("guidance-*"))) == 6  # embedding, four layers, head


def test_what_cannot_be_judged_is_told(folder, text, tmp_path, capsys, make_checkpoint):
    short = tmp_path / "short.txt"
    short.write_text("Alice.")
    other, _ = make_checkpoint()
    for arguments, message in (
        (["--text", tmp_path / "none.txt"], "there is no text file"),
        (["--text", short], "is too short for a window of 128 tokens"),
        (["--text", text, "--against", other], "has a vocabulary of 96 tokens"),
        (["--text", text, "--bits", "1.5"], "1.5 bits per weight are too few"),
        (["--text", text, "--bits", "4.7", "--quant", "int8"], "--bits and --quant both choose the size of the model"),
        (["--text", text, "-p", "quantize-gptq", "--calib", short], "is too short: it has 2 tokens"),
    ):
        assert run(["eval", str(folder), *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
