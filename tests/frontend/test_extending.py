"""The recipe of docs/extending.md for a family, as it stands there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from smc.frontend import load_checkpoint
from smc.frontend.architectures import parts, registry
from smc.frontend.architectures.block import Block, Width
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.registry import GGUF, architecture
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.rope import rope_table
from smc.reference import Reference

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def test_a_family(make_checkpoint: Callable[..., tuple[Path, Any]], monkeypatch: Any) -> None:
    """A Llama whose q, k and v have biases is what transformers calls Qwen2."""
    found = re.search(r"## A family\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    monkeypatch.setattr(registry, "_registered", dict(registry.architectures()))
    names = (GGUF, Block, Checkpoint, Decoder, Width, architecture, rope_table)
    exec(found[1], {"parts": parts, **{thing.__name__: thing for thing in names}})
    folder, model = make_checkpoint("Qwen2")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["BiasedForCausalLM"]}))
    tokens = torch.arange(40)
    with torch.no_grad():
        expected = model(tokens[None]).logits[0]
    module = load_checkpoint(folder)
    assert module.facts.architecture == "BiasedForCausalLM"
    torch.testing.assert_close(Reference(module).logits(tokens), expected, rtol=0, atol=1e-3)
