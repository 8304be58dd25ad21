"""The differential test: random configs over all families, in transformers, in the ir, and compiled."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smc
from smc.frontend.architectures import architectures
from smc.reference import Reference
from tests.frontend.drawn import DRAWS, FAST, drawn

Make = Callable[..., tuple[Path, Any]]
TOKENS = torch.randint(0, 96, (150,), generator=torch.Generator().manual_seed(5))
ENDS = [0, 3, 4, 90, 148, 149, 150]
ALL = 315
SEEDS = [pytest.param(seed, marks=[] if seed < FAST else [pytest.mark.slow]) for seed in range(ALL)]


def test_every_family_is_drawn() -> None:
    classes = {f"{kind}ForCausalLM" for kind in DRAWS} - {"GPT2ForCausalLM"} | {"GPT2LMHeadModel"}
    assert classes | {"Gemma3ForCausalLM"} == set(architectures())


@pytest.mark.parametrize("seed", SEEDS)
def test_logits(make_checkpoint: Make, tmp_path: Path, seed: int) -> None:
    kind, changes = drawn(seed)
    folder, model = make_checkpoint(kind, **changes)
    with torch.no_grad():
        expected = model(TOKENS[None]).logits[0].numpy()
    largest = np.abs(expected).max()
    module = smc.load_checkpoint(folder)
    logits = Reference(module).logits(TOKENS).numpy()
    assert np.abs(logits - expected).max() <= 1e-3 * largest, (kind, changes)
    smc.compile(module, out=tmp_path / "f32.smc")
    with smc.load(tmp_path / "f32.smc", kv_dtype="f32") as compiled, compiled.new_sequence() as sequence:
        steps = [sequence.extend(TOKENS[i:j].tolist(), logits="all").copy() for i, j in itertools.pairwise(ENDS)]
        assert np.abs(np.concatenate(steps) - expected).max() <= 1e-3 * largest, (kind, changes)
