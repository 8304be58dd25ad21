"""Every family compiled: against transformers, and bit for bit against the exact reference.

`make test` takes one model of each family, the rest is for `make test-long`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smc
from smc.errors import InputError
from smc.reference import ExactReference
from smc.runtime.interface import TOKEN
from tests.frontend.families import CASES, FAMILIES
from tests.levels import usable_levels

Make = Callable[..., tuple[Path, Any]]
TOKENS = torch.randint(0, 96, (300,), generator=torch.Generator().manual_seed(1)).tolist()
FIRST = [pytest.param(kind, place, marks=[pytest.mark.slow] if place else []) for kind, place in CASES]
CHUNKS = [0, 5, 6, 120, 128, *range(129, 301)]
"""Where steps end: short and long ones, then token by token."""


@pytest.mark.parametrize(("kind", "place"), FIRST)
def test_logits_equal_transformers(make_checkpoint: Make, tmp_path: Path, kind: str, place: int) -> None:
    """300 tokens whole, in chunks and one by one; with int8 activations, the bits of the exact reference."""
    folder, model = make_checkpoint(kind, **{"max_position_embeddings": 512, **FAMILIES[kind][place]})
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    module = smc.load_checkpoint(folder)
    smc.compile(module, out=tmp_path / "f32.smc")
    with smc.load(tmp_path / "f32.smc", kv_dtype="f32") as compiled:
        logits = compiled.logits(TOKENS).copy()
        assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()
        with compiled.new_sequence() as sequence:
            steps = [sequence.extend(TOKENS[i:j], logits="all").copy() for i, j in itertools.pairwise(CHUNKS)]
    assert np.array_equal(np.concatenate(steps), logits)


KERNELS = ("Qwen3", "Gemma2", "StableLm", "BitNet", "GPTNeoX")
"""Families that between them have every kernel that Llama has not."""


@pytest.mark.parametrize(
    ("kind", "place"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case[1] or case[0] not in KERNELS else []) for case in CASES],
)
def test_bits_of_the_exact_reference(make_checkpoint: Make, tmp_path: Path, kind: str, place: int) -> None:
    """Quantized, on every level of this machine, with every dtype of the cache."""
    folder, _ = make_checkpoint(kind, **{"max_position_embeddings": 512, **FAMILIES[kind][place]})
    module = smc.apply(smc.load_checkpoint(folder), ["quantize-rtn:bits=8"])
    smc.compile(module, out=tmp_path / "int8.smc")
    for kv_dtype in ("f16", "i8"):
        expected = ExactReference(module, kv_dtype).logits(torch.tensor(TOKENS[:24])).numpy()
        for level in usable_levels():
            with smc.load(tmp_path / "int8.smc", kv_dtype=kv_dtype, level=level) as compiled:
                np.testing.assert_array_equal(compiled.logits(TOKENS[:24]), expected)


@pytest.mark.parametrize(("context", "count"), [(128, 100), (512, 300)])
def test_longrope_is_chosen_by_the_context(make_checkpoint: Make, tmp_path: Path, context: int, count: int) -> None:
    """Once per opened model: the short factors up to the original context, the long ones beyond."""
    folder, model = make_checkpoint("Phi3", **{"max_position_embeddings": 512, **FAMILIES["Phi3"][3]})
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS[:count]])).logits[0].numpy()
    module = smc.load_checkpoint(folder)
    smc.compile(module, out=tmp_path / "f32.smc", verify=True)
    with smc.load(tmp_path / "f32.smc", kv_dtype="f32", context_length=context) as compiled:
        logits = compiled.logits(TOKENS[:count])
    assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()
    exact = ExactReference(module.opened(context), "f32").logits(torch.tensor(TOKENS[:20])).numpy()
    np.testing.assert_array_equal(logits[:20], exact)


def test_learned_positions_end_where_the_table_does(make_checkpoint: Make, tmp_path: Path) -> None:
    folder, _ = make_checkpoint("GPT2", **{"max_position_embeddings": 512, **FAMILIES["GPT2"][0]})
    smc.compile(smc.load_checkpoint(folder), out=tmp_path / "f32.smc")
    with pytest.raises(InputError, match="513 tokens is longer than the 512 positions that the model has learned"):
        smc.load(tmp_path / "f32.smc", context_length=513)
    with smc.load(tmp_path / "f32.smc") as compiled:
        batch = np.zeros(1, TOKEN)
        batch["position"] = 512
        batch["sequence"] = compiled.new_sequence().slot
        with pytest.raises(InputError, match="has the position 512, and the model has learned 512"):
            compiled.step(batch)


def test_a_soft_cap_leaves_the_fast_head_to_greedy_text(make_checkpoint: Make, tmp_path: Path) -> None:
    """The largest logit is found without writing any, and is that of the logits."""
    folder, _ = make_checkpoint("Gemma2", **FAMILIES["Gemma2"][0])
    smc.compile(smc.load_checkpoint(folder), out=tmp_path / "f32.smc")
    with smc.load(tmp_path / "f32.smc", kv_dtype="f32") as compiled:
        assert compiled.finds_argmax
        expected = compiled.logits(TOKENS[:40])[-1]
        assert np.abs(expected).max() < 30
        for first in (0, 39):  # many tokens at once, and one
            with compiled.new_sequence() as sequence:
                if first:
                    sequence.extend(TOKENS[:first])
                assert sequence.next_token(TOKENS[first:40]) == expected.argmax()
