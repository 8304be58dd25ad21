"""The examples of docs/passes.md and own-passes.md: a pass in a file of one's own, and a recipe that names it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smc.frontend import load_checkpoint
from smc.passes import apply, registry
from smc.passes.recipe import load_recipe
from smc.reference import Reference

DOCS = Path(__file__).parents[2] / "docs"
PAGES = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("passes.md", "own-passes.md"))


def block(language: str, inside: str) -> str:
    """The code block of the pages that has this text in it."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGES, re.MULTILINE | re.DOTALL)
    return next(text for text in found if inside in text)


def test_a_pass_and_a_recipe(
    make_checkpoint: Callable[..., tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass leaves out the last layer, as transformers does when it has one less; the recipe quantizes the rest."""
    monkeypatch.setattr(registry, "_registered", dict(registry.registered_passes()))
    (tmp_path / "my_pass.py").write_text(block("python", "DropLastLayer").replace("drop-last-layer", "my-pass"))
    (tmp_path / "mine.yaml").write_text(block("yaml", "my_pass.py"))
    folder, model = make_checkpoint()
    recipe = load_recipe(tmp_path / "mine.yaml")
    tokens = torch.arange(40)
    module = apply(load_checkpoint(folder), recipe.passes[-1:])
    model.model.layers = model.model.layers[:-1]
    with torch.no_grad():
        expected = model(tokens[None]).logits[0]
    torch.testing.assert_close(Reference(module).logits(tokens), expected, rtol=0, atol=1e-3)
    parameters = apply(module, recipe.passes[:-1]).parameters
    value, query = (parameters[f"model.layers.0.self_attn.{name}_proj.weight"].encoding for name in "vq")
    assert value is not None and query is not None
    assert (value.bits, query.bits, query.stores_zeros) == (8, 4, True)
