"""Every family's ir against transformers: random small models of all shapes that a family has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smc.frontend import load_checkpoint
from smc.passes import FUSIONS, apply
from smc.reference import Reference
from tests.frontend.families import CASES, FAMILIES

Make = Callable[..., tuple[Path, Any]]
TOKENS = torch.randint(0, 96, (300,), generator=torch.Generator().manual_seed(1))


FIRST = [pytest.param(kind, place, marks=[pytest.mark.slow] if place > 1 else []) for kind, place in CASES]
"""The first two shapes of each family; the others are for `make test-long`."""


@pytest.mark.parametrize(("kind", "place"), FIRST)
def test_logits_equal_transformers(make_checkpoint: Make, kind: str, place: int) -> None:
    """Whole prompts of 300 tokens; fused, the ir computes the same."""
    folder, model = make_checkpoint(kind, **{"max_position_embeddings": 512, **FAMILIES[kind][place]})
    with torch.no_grad():
        expected = model(TOKENS[None]).logits[0]
    module = load_checkpoint(folder)
    logits = Reference(module).logits(TOKENS)
    largest = expected.abs().max()
    assert (logits - expected).abs().max() <= 1e-3 * largest
    fused = Reference(apply(module, FUSIONS)).logits(TOKENS)
    assert (fused - logits).abs().max() <= 1e-5 * largest
