"""Numbers beyond what the arithmetic or the cache holds are reported at the first step, in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import smc
from smc.errors import InputError

MakeCheckpoint = Callable[..., tuple[Path, Any]]
Compile = Callable[..., Path]


@pytest.fixture
def compile_scaled(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Compile:
    """Compiles a tiny model some of whose tensors are multiplied: (factors by the end of a tensor's name, pass)."""

    def make(factors: dict[str, float], chain: str) -> Path:
        folder, _ = make_checkpoint()
        tensors = load_file(folder / "model.safetensors")
        for name, values in tensors.items():
            for end, factor in factors.items():
                if name.endswith(end):
                    tensors[name] = values * factor
        save_file(tensors, folder / "model.safetensors")
        smc.compile(smc.apply(smc.load_checkpoint(folder), [chain]), out=tmp_path / "model.smc")
        return tmp_path / "model.smc"

    return make


@pytest.mark.parametrize("chain", ["convert:dtype=f32", "quantize-rtn:bits=8"])
@pytest.mark.parametrize("projection", ["v_proj.weight", "k_proj.weight"])
def test_keys_and_values_beyond_f16(compile_scaled: Compile, projection: str, chain: str) -> None:
    path = compile_scaled({f"layers.1.self_attn.{projection}": 1e5}, chain)
    options: dict[str, Any] = {"max_tokens": 3, "temperature": 0.0}
    with smc.load(path) as model:
        for more in ({}, {"temperature": 1.0}, {"logprobs": 2}):
            with pytest.raises(InputError, match=r"the f16 KV cache.*--kv-dtype f32"):
                model.generate([1, 2, 3], **{**options, **more})
        with model.new_sequence() as sequence:
            with pytest.raises(InputError, match="--kv-dtype f32"):
                sequence.extend([5, 6])
            assert sequence.length == 0
    for kv_dtype in ("f32", "i8"):
        with smc.load(path, kv_dtype=kv_dtype) as model:
            assert torch.from_numpy(model.logits([1, 2, 3])).isfinite().all()
            assert len(model.generate([1, 2, 3], **options).tokens) == 3


@pytest.mark.parametrize("chain", ["convert:dtype=f32", "quantize-rtn:bits=8,scale_dtype=f32"])
def test_logits_beyond_float32(compile_scaled: Compile, chain: str) -> None:
    path = compile_scaled({"model.norm.weight": 1e20, "lm_head.weight": 1e20}, chain)
    with smc.load(path) as model:
        for options in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}, {"logprobs": 1}):
            with pytest.raises(InputError, match="results are NaN or infinite"):
                model.generate([1, 2, 3], max_tokens=3, **options)
