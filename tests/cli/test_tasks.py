"""`smc eval --tasks`: local tasks, whose figures are worked out by hand with transformers. Needs the extra "eval"."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.models import glassllm
from smc.cli.main import run

CHOICES = """
task: pick_{kind}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {output}
doc_to_text: {question}
doc_to_target: {target}
{more}
metadata:
  version: 1
"""
QUESTIONS = [
    {"start": "Alice was beginning to get very", "choices": ["tired", "Queen", "zqx"], "answer": 0},
    {"start": "The Queen said to the", "choices": ["zzz", "King", "rabbit hole of"], "answer": 1},
    {"start": "Down, down, down. There was", "choices": ["nothing", "flmp", "two"], "answer": 1},
]


@pytest.fixture
def folder(tmp_path):
    glassllm(tmp_path / "glassllm")
    return tmp_path / "glassllm"


def write_task(folder, kind, output, more, question="'{{start}}'", target="answer"):
    folder.mkdir(exist_ok=True)
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    text = CHOICES.format(kind=kind, data=data, output=output, more=more, question=question, target=target)
    (folder / f"{kind}.yaml").write_text(text)


def figures(capsys, *arguments):
    capsys.readouterr()
    assert run(["eval", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["tasks"]


def test_choices_and_texts(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("lm_eval")
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks = tmp_path / "tasks"
    write_task(tasks, "choice", "multiple_choice", "doc_to_choice: choices\nmetric_list:\n  - metric: acc")
    write_task(tasks, "text", "loglikelihood_rolling", "metric_list:\n  - metric: word_perplexity", "''", "'{{start}}'")
    found = figures(capsys, folder, "--tasks", "pick_choice,pick_text", "--task-folder", tasks)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def likelihood(context, continuation):
        first = tokenizer.encode(context, add_special_tokens=False).ids
        whole = tokenizer.encode(context + continuation, add_special_tokens=False).ids
        with torch.no_grad():
            chances = torch.log_softmax(model(torch.tensor([whole])).logits[0], -1)
        return sum(chances[i - 1, whole[i]].item() for i in range(len(first), len(whole)))

    right = 0
    for question in QUESTIONS:
        chances = [likelihood(question["start"], f" {choice}") for choice in question["choices"]]
        right += chances.index(max(chances)) == question["answer"]
    assert found["pick_choice"]["acc"] == pytest.approx(right / len(QUESTIONS))
    assert math.isfinite(found["pick_text"]["word_perplexity"])
    some = figures(capsys, folder, "--tasks", "pick_choice", "--task-folder", tasks, "--limit", 1)
    assert some["pick_choice"]["acc"] in (0, 1)
    assert run(["eval", str(folder), "--tasks", "pick_choise", "--task-folder", str(tasks)]) == 2
    assert "lm-eval has no task 'pick_choise'" in capsys.readouterr().err


def test_what_is_missing_is_told(folder, tmp_path, capsys, monkeypatch):
    assert run(["eval", str(folder)]) == 2
    assert "what to judge the model by is missing: --text FILE or --tasks NAMES" in capsys.readouterr().err
    assert run(["eval", str(folder), "--tasks", "a", "--against", str(folder)]) == 2
    assert "--against compares two models on a text" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["eval", str(folder), "--tasks", "arc_easy"]) == 2
    assert "--tasks needs the package lm-eval: " in capsys.readouterr().err
