"""A new model: random weights for a config."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from smc.frontend.architectures import build_module, find_architecture
from smc.frontend.checkpoint import Checkpoint, StoredTensor
from smc.frontend.config import Config
from smc.generation import GenerationDefaults
from smc.ir import F32, Module

if TYPE_CHECKING:
    from torch import Tensor

DEVIATION = 0.02
"""The standard deviation of matrices if the config has no `initializer_range`: that of GPT-2 and of transformers."""


def new_model(
    config: Mapping[str, Any], name: str, tokenizer: str | None = None, end: int | None = None, seed: int = 0
) -> Module:
    """A module of a supported family. InputError if the config is wrong or of another family.

    Matrices are normal, norms ones and biases zeros; each tensor depends on the seed and its name alone.
    tokenizer: the text of a `tokenizers` JSON file. end: the token that ends a text.
    """
    values = Config(config, f"the config of {name}")
    ends = GenerationDefaults(eos_token_ids=() if end is None else (end,))
    empty = Checkpoint(name, "random weights", values, {}, tokenizer, generation=ends)
    decoder = find_architecture(empty).build(empty)
    shapes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, str | None] = {}
    for block in (decoder.embed, *decoder.layers, decoder.head):
        for slot in block.function.parameters():
            source = block.sources[slot.name]
            shape = tuple(block.sizes[d] if isinstance(d, str) else d for d in slot.tensor.shape)
            if source.transform is not None:
                shape = source.transform.shape(shape)  # which is its own inverse
            rows = shape[0] if source.rows is None else max(source.rows.stop, shapes.get(source.name, (0,))[0])
            shapes[source.name] = (rows, *shape[1:])
            kinds[source.name] = slot.attributes["role"]
    spread = values.number("initializer_range", DEVIATION)
    tensors = {}
    for tensor, shape in shapes.items():
        read = partial(_values, tensor, shape, kinds[tensor], spread, seed)
        tensors[tensor] = StoredTensor(tensor, shape, F32, read, values.origin)
    return build_module(Checkpoint(name, f"random weights, seed {seed}", values, tensors, tokenizer, generation=ends))


def _values(name: str, shape: tuple[int, ...], role: str | None, spread: float, seed: int) -> Tensor:
    import torch

    if role == "norm":
        return torch.ones(shape)
    if role == "bias":
        return torch.zeros(shape)
    number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "little")
    return torch.randn(shape, generator=torch.Generator().manual_seed(number)) * spread
