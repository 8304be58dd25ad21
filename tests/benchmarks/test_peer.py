"""benchmarks.peer: what is decided before llama.cpp's own tools run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import models, peer

TINY = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 256,
    "tie_word_embeddings": True,
}


def test_a_random_models_tokenizer_knows_bytes_only(tmp_path: Path) -> None:
    models.random(tmp_path / "random", TINY)
    assert peer.knows_bytes_only(tmp_path / "random")


@pytest.mark.parametrize("model", [{"type": "BPE", "merges": [["a", "b"]]}, {"type": "Unigram"}])
def test_another_tokenizer_knows_more(tmp_path: Path, model: dict[str, object]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}), encoding="utf-8")
    assert not peer.knows_bytes_only(tmp_path)


def test_a_folder_without_a_tokenizer_is_the_converters_to_judge(tmp_path: Path) -> None:
    assert not peer.knows_bytes_only(tmp_path)
