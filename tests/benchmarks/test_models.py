"""The models that benchmarks and tests start from are what they claim to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import glassllm
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks import models, shapes
from benchmarks.checkpoints import complete_folder

OPENING = "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do"


@pytest.fixture(scope="module")
def glassllm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "glassllm"
    models.glassllm(folder)
    return folder


def test_glassllm_computes_what_its_own_numpy_code_computes(glassllm_folder: Path) -> None:
    own, tokenizer = glassllm.load_pretrained("en")
    tokens = tokenizer.encode(OPENING)
    converted = AutoModelForCausalLM.from_pretrained(glassllm_folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = converted(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(logits, own(tokens).data[0], atol=1e-4)


def test_glassllm_has_the_odd_ffn_width(glassllm_folder: Path) -> None:
    assert json.loads((glassllm_folder / "config.json").read_text())["intermediate_size"] == 341


OWN_TOKENIZER = glassllm.load_pretrained("en")[1]
ALPHABET = st.sampled_from(
    [*OWN_TOKENIZER.alphabet, " ", "  ", "é", "e\u0301", "\r", "\t", "\U0001f600", "the", "Alice"]
)


@given(st.lists(ALPHABET, max_size=40).map("".join))
def test_glassllm_tokenizer_gives_its_own_ids(glassllm_folder: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(glassllm_folder / "tokenizer.json"))
    ids = OWN_TOKENIZER.encode(text)
    assert tokenizer.encode(text).ids == ids
    known = [index for index in ids if index != OWN_TOKENIZER.unk_id]
    assert tokenizer.decode(ids) == OWN_TOKENIZER.decode(known)


def test_half_split_rows_turns_neighbours_into_halves() -> None:
    weight = np.arange(2 * 6)[:, None]  # 2 heads of 6 rows, one input
    assert models.half_split_rows(weight, heads=2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_leaving_the_grid_keeps_the_function() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}
    network = LlamaForCausalLM(LlamaConfig(**sizes, **heads, vocab_size=32)).eval()
    tokens = torch.randint(0, 32, (1, 9))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        expected = network(tokens).logits
        tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}  # shares memory
        models.leave_the_grid(tensors, {**sizes, **heads})
        torch.testing.assert_close(network(tokens).logits, expected, atol=1e-5, rtol=1e-4)
    unchanged = [name for name, tensor in network.state_dict().items() if torch.equal(tensor, before[name])]
    assert unchanged == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


RANDOM_CONFIG = models.TINYLLAMA_CONFIG | {
    "hidden_size": 40,
    "intermediate_size": 57,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "vocab_size": 301,
}


@pytest.mark.parametrize("family", [{}, shapes.GEMMA3_270M, shapes.QWEN25_05B, shapes.STABLELM2_16B])
def test_a_random_model_is_one_that_transformers_loads(tmp_path: Path, family: dict[str, Any]) -> None:
    models.random(tmp_path / "random", {**family, **RANDOM_CONFIG}, shard_bytes=20_000)
    index = json.loads((tmp_path / "random" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    network, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "random", dtype=torch.float16, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(parameter.numel() for parameter in network.parameters()) * 2 == index["metadata"]["total_size"]
    assert 0.019 < network.model.layers[1].mlp.up_proj.weight.float().std() < 0.021


def test_a_random_model_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        models.random(tmp_path / name, RANDOM_CONFIG, seed=seed)
        weights.append(load_file(tmp_path / name / "model-00001-of-00001.safetensors")["lm_head.weight"])
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_nothing_is_left_behind_when_making_a_folder_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with complete_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("written")
            raise KeyError("interrupted")

    with pytest.raises(KeyError, match="interrupted"):
        fail()
    assert list(tmp_path.iterdir()) == []
