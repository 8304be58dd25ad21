"""`smc inspect`: figures checked by hand on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smc.cli import main

Make = Callable[..., tuple[Path, Any]]


def inspect_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main.run(["inspect", str(folder), "--json"]) == 0
    description: dict[str, Any] = json.loads(capsys.readouterr().out)
    return description


def test_json(make_checkpoint: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder, model = make_checkpoint("Mistral", sliding_window=33)
    description = inspect_json(folder, capsys)
    weights = sum(values.numel() for values in model.parameters())
    assert description["parameters"] == weights
    assert description["weight_bytes"] == 4 * weights
    assert description["bits_per_weight"] == 32
    assert description["kv_bytes_per_token"] == 2 * 2 * (2 * 12) * 2  # layers × k and v × values × bytes of f16
    expected = {
        "architecture": "MistralForCausalLM",
        "layers": 2,
        "hidden_size": 48,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 12,
        "ffn_width": 80,
        "experts": None,
        "experts_per_token": None,
        "sliding_window": 33,
        "vocab_size": 96,
        "context_length": 256,
        "tokenizer": None,
        "chat_template": False,
    }
    assert {key: description[key] for key in expected} == expected
    slots = {row["slot"]: row for row in description["slots"]}
    assert slots["k_proj"] == {
        "slot": "k_proj",
        "tensors": 2,
        "shapes": [[24, 48]],
        "encodings": ["f32"],
        "bytes": 2 * 24 * 48 * 4,
        "tied_to": None,
    }


def test_tied_head_is_counted_once(make_checkpoint: Make, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    folder, model = make_checkpoint(tie_word_embeddings=True)
    model.to(torch.float16).save_pretrained(folder)
    description = inspect_json(folder, capsys)
    slots = {row["slot"]: row for row in description["slots"]}
    assert (slots["lm_head"]["tied_to"], slots["lm_head"]["bytes"]) == ("embed_tokens", 0)
    assert sum(row["bytes"] for row in slots.values()) == description["weight_bytes"]
    norms = 5 * 48
    expected = (16 * (description["parameters"] - norms) + 32 * norms) / description["parameters"]
    assert description["bits_per_weight"] == pytest.approx(expected, abs=1e-4)


def test_layers_that_differ(make_checkpoint: Make, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = make_checkpoint()
    tensors = load_file(folder / "model.safetensors")
    for name, values in tensors.items():
        if name.startswith("model.layers.1.mlp"):
            tensors[name] = values[:, :33].contiguous() if "down" in name else values[:33].contiguous()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": [80, 33]}))
    description = inspect_json(folder, capsys)
    assert description["ffn_width"] == [33, 80]
    assert main.run(["inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "FFN 33 to 80" in text
    assert "33 × 48 to 80 × 48 (2 different)" in text


def test_text_in_a_pipe_is_plain(make_checkpoint: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = make_checkpoint()
    capsys.readouterr()
    assert main.run(["inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert f"{folder.name} (LlamaForCausalLM)" in text
    assert "4 of 12 channels, 2 for keys and values" in text


def test_ir(make_checkpoint: Make, capsys: pytest.CaptureFixture[str]) -> None:
    from smc.frontend import load_checkpoint
    from smc.ir import print_module

    folder, _ = make_checkpoint()
    capsys.readouterr()
    assert main.run(["inspect", str(folder), "--ir"]) == 0
    assert capsys.readouterr().out == print_module(load_checkpoint(folder))


def test_artifact(make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = make_checkpoint()
    out = tmp_path / "model.smc"
    assert main.run(["compile", str(folder), "--quant", "int8", "-o", str(out)]) == 0
    manifest = inspect_json(out, capsys)
    assert (manifest["format"], manifest["encodings"]["model.layers.0.mlp.up_proj.weight"]) == ("smc", "int8.g32")
    assert main.run(["inspect", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"{folder.name} (LlamaForCausalLM)" in text
    assert f"{manifest['parameters']:,}" in text
    assert "quantize-rtn:bits=8" in text
    line = next(line for line in text.splitlines() if line.startswith("int8.g32 "))
    assert "q_proj × 2" in line
    assert "x86-64: avx512vnni, avxvnni, avx2" in text
    assert main.run(["inspect", str(out), "--ir"]) == 2
    assert "is an artifact and has no ir" in capsys.readouterr().err


def test_cut_artifact(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.smc").write_bytes(artifact.read_bytes()[:-50])
    assert main.run(["inspect", str(tmp_path / "cut.smc")]) == 2
    assert "is incomplete" in capsys.readouterr().err


def test_artifact_with_the_required_keys_only(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["inspect", str(artifact)]) == 0
    assert "counting" in capsys.readouterr().out


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["inspect", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path} has no config.json, so it is no checkpoint in the Hugging Face layout\n"


def test_experts(make_checkpoint: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = make_checkpoint("Mixtral", num_local_experts=5)
    description = inspect_json(folder, capsys)
    assert (description["experts"], description["experts_per_token"]) == (5, 2)
    assert main.run(["inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "experts 5, of which a token chooses 2" in text
    assert "5 × 80 × 48" in text
