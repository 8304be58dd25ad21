"""The recipes and programs of examples/ are what they say; their long runs are figures of docs/training.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

from smc.frontend import load_checkpoint
from smc.passes import FunctionalTokens, Train, apply, load_recipe
from smc.passes.options import make_pass
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
