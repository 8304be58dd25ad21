"""Checkpoints in the Hugging Face layout, written whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]
"""By name."""


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `out` (not there yet) once the block ends without an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield partial
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """A JSON file as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_model(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """A Llama checkpoint in one shard, without its tokenizer."""
    from safetensors.numpy import save_file

    write_config(folder, config)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """config.json of a Llama, f16, and generation_config.json if it names special tokens."""
    family = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    write_json(folder / "config.json", family | {"torch_dtype": "float16"} | config)
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    if tokens:
        write_json(folder / "generation_config.json", tokens)
