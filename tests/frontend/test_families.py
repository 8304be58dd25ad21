"""Every family's ir against transformers: random small models of all shapes that a family has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smc.errors import InputError
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


@pytest.mark.parametrize("said", [False, True])
def test_gemma_2_has_soft_caps_unless_they_are_null(make_checkpoint: Make, said: bool) -> None:
    caps = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    folder, model = make_checkpoint("Gemma2", head_dim=12, **(caps if said else {}))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**{k: v for k, v in config.items() if k not in caps}, **(caps if said else {})}))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)  # so that caps matter
        model.save_pretrained(folder / "weights")
        (folder / "weights" / "model.safetensors").replace(folder / "model.safetensors")
        expected = model(TOKENS[None]).logits[0]
    logits = Reference(load_checkpoint(folder)).logits(TOKENS)
    assert (logits - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("StableLm", {"qk_layernorm": True}, "the checkpoint lacks the tensor model.layers.0.self_attn.q_layernorm."),
        ("StableLm", {"partial_rotary_factor": 0.25}, "a rotary embedding of 3 of the 12 channels of a head"),
        ("SmolLM3", {"no_rope_layers": [1]}, "no_rope_layers must be a list of 2 numbers, one per layer"),
        ("Gemma2", {"layer_types": ["sliding_attention"]}, "layer_types must be a list of 2 kinds"),
        ("Gemma2", {"layer_types": ["sliding_attention", "chunked"]}, "layer_types must be a list of 2 kinds"),
        ("Phi3", {"rope_parameters": {"rope_type": "longrope", "long_factor": 3}}, "short_factor must be a list of 6"),
    ],
)
def test_what_a_family_does_not_take(make_checkpoint: Make, kind: str, changes: dict[str, Any], message: str) -> None:
    folder, _ = make_checkpoint(kind, **{"partial_rotary_factor": 0.5} if kind == "StableLm" else {"pad_token_id": 0})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if "partial_rotary_factor" in changes:
        del config["rope_parameters"]
    path.write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputError) as caught:
        load_checkpoint(folder)
    assert message in str(caught.value)
