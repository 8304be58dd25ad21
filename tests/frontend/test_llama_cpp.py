"""llama.cpp's own logits of GGUF files of every family, beside those of the same files here.

Its converter writes the files; those that it does not take are written as in test_gguf_families.py. It runs them in
float32, cache included, so that both differ by rounding only. Needs `python -m benchmarks.peer build`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch.nn import functional

from benchmarks.peer import SOURCE
from smc.frontend import load_checkpoint
from smc.reference import Reference
from tests.frontend.families import FAMILIES, HEADS, LLAMA3, ONE_KV, YARN
from tests.frontend.test_gguf_families import NOT_SAID, sayable, write

Make = Callable[..., tuple[Path, Any]]
LIBRARIES = SOURCE / "build" / "bin"
TOKENS = torch.randint(0, 96, (60,), generator=torch.Generator().manual_seed(1))

TWO_BASES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
ALL: dict[str, list[dict[str, Any]]] = {
    "Llama": [{}, HEADS, {**ONE_KV, "rope_parameters": LLAMA3}, {"attention_bias": True}, {"mlp_bias": True}],
    "Mistral": [{"sliding_window": None}, ONE_KV],
    **FAMILIES,
    "Qwen2": [*FAMILIES["Qwen2"], {"rope_parameters": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0}}],
    "Gemma3": [
        *FAMILIES["Gemma3"],
        {"head_dim": 12, "final_logit_softcapping": 3.0},
        {"head_dim": 12, "sliding_window": 7, "rope_parameters": TWO_BASES},
    ],
    # llama.cpp gives every BitNet the activation of the first checkpoints.
    "BitNet": [{**changes, "hidden_act": "silu"} for changes in FAMILIES["BitNet"]],
}

REFUSED = {
    ("Qwen3", 3): "wrong number of tensors",  # biases of q, k, v and o
    ("Gemma", 3): "wrong number of tensors",
    ("Gemma2", 3): "wrong number of tensors",
    ("Gemma3", 3): "wrong number of tensors",
    ("BitNet", 1): "wrong number of tensors",
    ("SmolLM3", 2): "wrong number of tensors",  # biases of the feed-forward, too
    ("StableLm", 3): "tensor 'output.weight' not found",  # tied embeddings
    ("Olmo2", 1): "tensor 'output.weight' not found",
    ("Olmoe", 1): "tensor 'output.weight' not found",
    ("GPTNeoX", 1): "tensor 'output.weight' not found",
    ("Olmoe", 0): "tensor 'blk.0.attn_k_norm.weight' has wrong shape",  # fewer key-value heads than heads
    ("Olmoe", 2): "tensor 'blk.0.attn_k_norm.weight' has wrong shape",
    ("GPT2", 1): "tensor 'blk.0.ffn_down.weight' has wrong shape",  # n_inner other than 4 n_embd, by its converter
    ("GPTNeoX", 2): "tensor 'blk.0.attn_qkv.bias' not found",  # no biases of attention
}
"""What llama.cpp does not load: its error."""

UNCONVERTED = {
    ("StableLm", 4): "Unprocessed norms",
    ("Granite", 3): "Missing <MODEL_TENSOR.ROPE_FREQS",
    **{("BitNet", place): "Can not map tensor 'model.layers.0.mlp.ffn_sub_norm.weight'" for place in range(4)},
    **{("GPTNeoX", place): "'rotary_pct'" for place in range(4)},  # transformers 5 has another name for it
}
"""What its converter does not take: its error."""

UNWRITTEN = {("Qwen3Moe", 2), ("Qwen3Moe", 3)}
"""Its dense layers, which neither the converter nor the `gguf` package has names for."""

LOST = {("Mistral", 1), ("Mixtral", 2), ("Mixtral", 3), ("Olmo2", 3), ("Olmoe", 3), ("Qwen3Moe", 0)}
"""What its converter leaves out, beside NOT_SAID: windows and gelu of the architecture llama, rope types of OLMo,
`norm_topk_prob`. Both read the files alike; the folder has another model."""

WRITTEN = {"query_pre_attn_scalar", "hidden_act"}
"""Those of NOT_SAID that the checkpoints here have as files mean them."""

OTHERWISE = {("Phi3", 2)}
"""llama.cpp ignores the windows of Phi 3 ("Phi SWA is currently disabled"), which transformers has."""

GELU = ("Gemma", "Gemma2", "Gemma3", "GPT2", "GPTNeoX")
CLOSE, CLOSE_OF_GELU = 1e-5, 1e-3
"""The largest difference to llama.cpp's logits, relative to the largest logit: 3e-6 was seen, and with gelu, which it
takes from a table of float16, 2e-4."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prints the logits of a file."""
    compiler = shutil.which("cc")
    if compiler is None or not (LIBRARIES / "libllama.so").exists():
        pytest.skip("llama.cpp is not built: python -m benchmarks.peer build")
    source, out = Path(__file__).with_name("llama_cpp_logits.c"), tmp_path_factory.mktemp("llama") / "logits"
    places = [f"-I{SOURCE}/include", f"-I{SOURCE}/ggml/include", f"-L{LIBRARIES}", f"-Wl,-rpath,{LIBRARIES.resolve()}"]
    subprocess.run([compiler, "-o", out, source, *places, "-lllama", "-lggml", "-lggml-base"], check=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_logits_equal_those_of_llama_cpp(
    make_checkpoint: Make, program: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cases = [case for case in enumerate(ALL[kind]) if (kind, case[0]) not in UNWRITTEN]
    models = {place: make(make_checkpoint, kind, changes) for place, changes in cases}
    convert([folder for folder, _ in models.values()])
    for place, (folder, model) in models.items():
        path = folder.with_name(f"{folder.name}.gguf")
        if (kind, place) in UNCONVERTED:
            assert UNCONVERTED[kind, place] in folder.with_name(f"{folder.name}.refused").read_text()
            write(path, kind, model)
        ran = subprocess.run([program, path, *map(str, TOKENS.tolist())], capture_output=True)
        if (kind, place) in REFUSED:
            assert ran.returncode == 1 and REFUSED[kind, place] in ran.stderr.decode()
            continue
        assert ran.returncode == 0, ran.stderr.decode()
        theirs = torch.from_numpy(np.frombuffer(ran.stdout, np.float32).reshape(len(TOKENS), -1).copy())
        with monkeypatch.context() as patch:
            patch.setattr(functional, "gelu", from_a_table)
            ours = Reference(load_checkpoint(path)).logits(TOKENS)
            if (kind, place) not in LOST and not (NOT_SAID - WRITTEN) & set(ALL[kind][place]):
                assert ours.equal(Reference(load_checkpoint(folder)).logits(TOKENS)), place
        close = CLOSE_OF_GELU if kind in GELU else CLOSE
        assert ((ours - theirs).abs().max() <= close * theirs.abs().max()) == ((kind, place) not in OTHERWISE), place


def make(make_checkpoint: Make, kind: str, changes: dict[str, Any]) -> tuple[Path, Any]:
    """A folder and the model, with what llama.cpp's converter needs beside what transformers writes."""
    folder, model = make_checkpoint(kind, **sayable(kind, changes))
    config = json.loads((folder / "config.json").read_text())
    if kind == "GPT2":  # published files have it, and transformers 5 writes it no more
        config["n_ctx"] = config["n_positions"]
    (folder / "config.json").write_text(json.dumps(config))
    # By which it counts the rows of Gemma 3's embedding.
    vocabulary = {f"t{token}": token for token in range(model.config.vocab_size)}
    Tokenizer(BPE(vocabulary, [])).save(str(folder / "tokenizer.json"))
    return folder, model


def convert(folders: list[Path]) -> None:
    """By llama.cpp's converter, those that it takes."""
    converter = SOURCE / "convert_hf_to_gguf.py"
    command = [sys.executable, "-m", "tests.frontend.llama_cpp_convert", converter, *folders]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])


def from_a_table(x: torch.Tensor, approximate: str = "none", exact: Any = functional.gelu) -> torch.Tensor:
    """gelu as llama.cpp has it between -10 and 10: its argument and its value are rounded to float16."""
    found = exact(x.half().float(), approximate="tanh").half().float()
    return torch.where(x >= 10, x, torch.where(x <= -10, 0.0, found))
