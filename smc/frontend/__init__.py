"""Checkpoints → ir: Hugging Face folders, hub ids and GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smc.ir import Module

__all__ = ["load_checkpoint"]


def load_checkpoint(source: str | Path, adapters: Sequence[str | Path] = ()) -> Module:
    """The model in `source` as a verified ir module; its weights are read later, one tensor at a time.

    source: a folder in the Hugging Face layout (config.json, safetensors), the id of a model on the Hugging Face hub
    ("org/name", downloaded into its cache), or a .gguf file of a family that is supported.
    adapters: folders of LoRA adapters in PEFT's layout, merged in this order as the weights are read.
    Raises InputError, in one sentence, where the checkpoint can't be found, is broken or is of an unsupported kind.
    No code of the checkpoint is run and nothing is unpickled.
    """
    from smc.frontend.adapter import merged
    from smc.frontend.architectures import build_module
    from smc.frontend.source import open_checkpoint

    folders = [Path(folder).expanduser() for folder in adapters]
    return build_module(merged(open_checkpoint(source), folders))
