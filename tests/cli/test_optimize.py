"""`smc optimize`, `smc distill` and `smc train`: what they write, that it compiles, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml

import smc
from smc.cli.main import run
from smc.frontend import load_checkpoint
from smc.reference import ExactReference, Reference
from tests.passes.test_reshape import byte_tokenizer

TEXT = "".join(f"The number {i} follows the number {i - 1}, and {i * i} is its square.\n" for i in range(1, 300))
LIMITS = ["--steps", "3", "--set", "window=32", "--set", "batch=2", "--set", "precision=f32"]


@pytest.fixture
def folder(make_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path, _ = make_checkpoint(vocab_size=256, num_hidden_layers=4)
    byte_tokenizer().save(str(path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(TEXT)
    return path


def test_optimize_writes_what_transformers_loads(folder, capsys):
    arguments = ["-p", "drop-layers:layers=1-2", "--text", "text.txt", "-o", "out"]
    assert run(["optimize", str(folder), *arguments]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("out: ")
    assert "drop-layers: dropped 1-2 of 4 layers" in said.err
    model = transformers.AutoModelForCausalLM.from_pretrained("out").eval()
    assert model.config.num_hidden_layers == 2
    tokens = torch.arange(40)
    with torch.no_grad():
        made = model(tokens[None]).logits[0]
    torch.testing.assert_close(made, Reference(load_checkpoint("out")).logits(tokens), rtol=0, atol=1e-3)
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "| perplexity before |" in card and "| perplexity |" in card
    assert "Its layers were those with the numbers 0, 3." in card
    assert run(["optimize", str(folder), "-o", "out"]) == 2
    assert "out exists already: name a new folder" in capsys.readouterr().err


def test_passes_of_several_options_have_the_first_model_as_teacher(folder, tmp_path, capsys):
    """`-p` by `-p`, and as one command of their own: the same weights, learned from the model with all layers."""
    step = "distill:data=text.txt,steps=3,window=32,batch=2,precision=f32"
    assert run(["optimize", str(folder), "-p", "drop-layers:layers=2", "-p", step, "-o", "one"]) == 0
    first = [json.loads(line) for path in tmp_path.glob("cache/training/*/log.jsonl") for line in path.open()]
    assert first[0]["loss"] > 1e-3  # of a teacher with as few layers it would be 0
    distilled = ["distill", str(folder), "-p", "drop-layers:layers=2", "--data", "text.txt", *LIMITS, "-o", "two"]
    assert run(distilled) == 0
    assert "already done" in capsys.readouterr().err
    one, two = (load_checkpoint(name) for name in ("one", "two"))
    assert all(torch.equal(p.values(), two.parameters[n].values()) for n, p in one.parameters.items())


@pytest.mark.slow
def test_a_pruned_and_healed_model_compiles_smaller(folder, tmp_path):
    """A recipe from the checkpoint to the artifact; the engine's logits are those of the exact reference."""
    recipe = {
        "passes": [
            {"drop-layers": {"layers": ["1-2"]}},
            {"distill": {"data": ["text.txt"], "steps": 3, "window": 32, "batch": 2, "precision": "f32"}},
            {"quantize-rtn": {"bits": 4}},
        ]
    }
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["compile", str(folder), "--recipe", "chain.yaml", "-o", "small.smc"]) == 0
    assert run(["compile", str(folder), "-p", "quantize-rtn:bits=4", "-o", "whole.smc"]) == 0
    small, whole = (tmp_path / f"{name}.smc" for name in ("small", "whole"))
    assert small.stat().st_size < whole.stat().st_size
    module = smc.apply(load_checkpoint(folder), [*smc.passes.load_recipe("chain.yaml").passes], work="cache/training")
    tokens = torch.arange(30)
    expected = ExactReference(module).logits(tokens)
    with smc.load(small, kv_dtype="f32") as artifact:
        assert torch.equal(torch.from_numpy(artifact.logits(tokens.tolist())), expected)


@pytest.mark.slow
def test_a_ternary_model_from_scratch(folder, tmp_path, capsys):
    """It is trained rounded, goes out packed, comes back exactly, and runs on ternary kernels with the same bits."""
    plan = {
        "model": {
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
        },
        "tokenizer": 300,
        "train": {"data": ["text.txt"], "quantize": "ternary", "steps": 100, "window": 32, "learning_rate": 0.01},
        "text": "text.txt",
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert run(["train", "plan.yaml", "-o", "tiny"]) == 0
    assert "a rule of thumb for a new model is 20 tokens per weight" in capsys.readouterr().err
    lines = [json.loads(line) for path in tmp_path.glob("cache/training/*/log.jsonl") for line in path.open()]
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    module = load_checkpoint("tiny")
    ternary = [p for n, p in module.parameters.items() if "_proj" in n]
    assert {p.load().encoding.constant_zero for p in ternary} == {1}
    assert run(["compile", "tiny", "-o", "tiny.smc"]) == 0
    tokens = torch.arange(30)
    with smc.load("tiny.smc", kv_dtype="f32") as artifact:
        made = torch.from_numpy(artifact.logits(tokens.tolist()))
    assert torch.equal(made, ExactReference(module).logits(tokens))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimize", "FOLDER", "-p", "drop-layers:layers=0-3", "-o", "out"], "would leave no layer of 4"),
        (["distill", "FOLDER", "--data", "text.txt", "-o", "out"], "needs one of minutes, steps and tokens"),
        (["distill", "FOLDER", "--data", "no.txt", "--steps", "1", "-o", "out"], "there is no text file no.txt"),
        (["distill", "FOLDER", "--data", "text.txt", "--steps", "1", "--set", "x", "-o", "out"], "takes OPTION=VALUE"),
        (["distill", "FOLDER", "--data", "text.txt", "--steps", "1", "--teacher", "no", "-o", "out"], "no does not"),
        (["train", "no.yaml", "-o", "out"], "there is no file no.yaml"),
        (["train", "text.txt", "-o", "out"], "text.txt must have"),
    ],
)
def test_what_cannot_be_is_refused(folder, tmp_path, capsys, arguments, words):
    assert run([str(folder) if a == "FOLDER" else a for a in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
