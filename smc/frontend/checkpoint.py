"""A checkpoint as every source brings it, whatever its format: spelled in Hugging Face's terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.generation import GenerationDefaults
from smc.ir import EncodedTensor, Encoding, Parameter, encode_float
from smc.ir.encoding import F32

if TYPE_CHECKING:
    from torch import Tensor

    from smc.frontend.config import Config


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, not read yet.

    encoding: the float encoding that holds its values exactly. read: gives them, in that dtype and in `shape`.
    origin: the file it lies in, for messages.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    read: Callable[[], Tensor] = field(repr=False, compare=False)
    origin: str = ""

    def values(self) -> Tensor:
        """The values; InputError where one is NaN or infinite."""
        import torch

        values = self.read()
        extremes = torch.aminmax(values)  # NaN wins; far faster than isfinite on every element
        if not (extremes.min.isfinite() and extremes.max.isfinite()):
            raise InputError(f"{self.origin}: tensor {self.name} holds NaN or infinite weights, the file is damaged")
        return values

    def parameter(self) -> Parameter:
        """The ir's view of it: a matrix in the encoding it is stored in, a vector (norm weight, bias) in f32."""
        encoding = self.encoding if len(self.shape) > 1 else F32

        def load() -> EncodedTensor:
            return encode_float(self.values(), encoding)

        return Parameter(self.name, self.shape, encoding, load)


@dataclass(frozen=True)
class Checkpoint:
    """What a source brings: config, tensors by name, and what the runtime needs beside the weights.

    The fields from `tokenizer` to `generation` are those of `smc.ir.ModelFacts`. format: for the provenance,
    "safetensors" or "GGUF" with the types of its tensors (which are read as the floats they stand for). applied: kinds
    of transforms (`architectures.views`) that the format stores done.
    changes: what was done to it since, a line each. source: the file or folder that all of it is in.
    """

    name: str
    format: str
    config: Config
    tensors: Mapping[str, StoredTensor]
    tokenizer: str | None = None
    chat_template: str | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    applied: frozenset[str] = frozenset()
    changes: tuple[str, ...] = ()
    source: Path | None = None
