"""The recipes and programs of examples/ are what they say; their long runs are figures of docs/training.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import smc
from smc.cli.main import run
from smc.frontend import load_checkpoint
from smc.passes import FunctionalTokens, Train, apply, load_recipe
from smc.passes.options import make_pass
from smc.reference import ExactReference
from tests.passes.test_reshape import byte_tokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_recipes_are_read():
    names = [step.name for step in load_recipe(EXAMPLES / "chain.yaml").passes]
    assert names[:3] == ["convert", "drop-layers", "distill"]
    assert [step.name for step in load_recipe(EXAMPLES / "octopus" / "recipe.yaml").passes][1:] == [
        "functional-tokens", "train",
    ]  # fmt: skip
    plan = yaml.safe_load((EXAMPLES / "ternary.yaml").read_text())
    assert make_pass(Train, plan["train"]).quantize == "ternary"


def test_the_octopus_has_other_sentences_in_its_test(tmp_path, make_checkpoint):
    subprocess.run([sys.executable, EXAMPLES / "octopus" / "make_data.py", tmp_path], check=True, capture_output=True)
    functions = json.loads((tmp_path / "functions.json").read_text())
    assert len(functions) == 20
    texts = [(tmp_path / f"{name}.jsonl").read_text() for name in ("train", "test")]
    train, test = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert len(train) == 400 and len(test) == 80

    def sentences(entries):
        found = set()
        for entry in entries:
            value = entry["completion"].partition("(")[2].partition(")")[0]
            assert value in entry["prompt"]
            found.add(entry["prompt"].replace(value, "{}", 1))
        return found

    assert not sentences(train) & sentences(test)
    folder, _ = make_checkpoint(vocab_size=256)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    module = apply(load_checkpoint(folder), [FunctionalTokens(str(tmp_path / "functions.json"))])
    assert module.facts.vocab_size == 256 + 21


@pytest.mark.slow
def test_a_ternary_model_of_millions_of_weights_has_the_references_bits(tmp_path, monkeypatch):
    """examples/ternary.yaml with fewer steps: trained, written, compiled to ternary kernels, and run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMC_CACHE", str(tmp_path / "cache"))
    prose = "".join(path.read_text(encoding="utf-8") for path in sorted((EXAMPLES.parent / "docs").glob("*.md")))
    (tmp_path / "prose.txt").write_text(prose, encoding="utf-8")
    plan = yaml.safe_load((EXAMPLES / "ternary.yaml").read_text())
    plan["train"] |= {"steps": 30, "batch": 4, "warmup": 3}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert run(["train", "plan.yaml", "-o", "tiny"]) == 0
    module = load_checkpoint(tmp_path / "tiny")
    assert module.weight_count() > 5e6
    lines = [json.loads(line) for path in tmp_path.glob("cache/training/*/log.jsonl") for line in path.open()]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert run(["compile", "tiny", "-o", "tiny.smc"]) == 0
    projections = [p for name, p in module.parameters.items() if "_proj" in name]
    assert len(projections) == 42 and all(p.load().encoding.constant_zero == 1 for p in projections)
    tokens = torch.arange(0, 4000, 40)
    with smc.load("tiny.smc", kv_dtype="f32") as artifact:
        made = torch.from_numpy(artifact.logits(tokens.tolist()))
    assert torch.equal(made, ExactReference(module).logits(tokens))
