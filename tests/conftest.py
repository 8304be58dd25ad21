"""Fixtures that several folders of tests share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smc.codegen.objects import kept_workers

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start background jobs this way, and programs inherit it; the tests of Ctrl-C need it as it usually is.
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session", autouse=True)
def one_start_of_workers() -> Iterator[None]:
    """Hundreds of tests compile; starting workers for each would take minutes."""
    with kept_workers():
        yield


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Makes a tiny random transformers model and saves it: (kind, **changes to its config) → folder and model."""

    def make(kind: str = "Llama", **changes: Any) -> tuple[Path, Any]:
        import torch
        import transformers

        torch.manual_seed(0)
        # Where a family also has models that see, the config of text models has a name of its own.
        config_class = getattr(transformers, f"{kind}TextConfig", None) or getattr(transformers, f"{kind}Config")
        config = config_class(**{**TINY, **changes})
        model_class = getattr(transformers, f"{kind}ForCausalLM", None) or getattr(transformers, f"{kind}LMHeadModel")
        config._experts_implementation = "eager"  # others want sizes that are multiples of 16 bytes
        model = model_class(config).eval()
        with torch.no_grad():
            for name, values in model.named_parameters():
                # Norms away from 1 and biases away from 0, so that a test sees them.
                values.normal_(1.0 if "norm" in name else 0.0, 0.1 if values.dim() == 1 else 0.15)
        folder = tmp_path / f"checkpoint{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        return folder, model

    return make
