"""A checkpoint of any format, with Hugging Face's names and keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
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
class Coded:
    """A matrix as codes and scales, as its file stores them. load: returns them in this encoding."""

    encoding: Encoding
    load: Callable[[], EncodedTensor] = field(repr=False, compare=False)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, not read yet.

    encoding: the float encoding that holds its values exactly. read: returns them, in that dtype and in `shape`.
    origin: the file it lies in, for messages. coded: the same as codes, if the file has codes that an encoding
    represents.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    read: Callable[[], Tensor] = field(repr=False, compare=False)
    origin: str = ""
    coded: Coded | None = None

    def values(self) -> Tensor:
        """The values; InputError if one is NaN or infinite."""
        import torch

        values = self.read()
        extremes = torch.aminmax(values)  # NaN wins; far faster than isfinite on every element
        if not (extremes.min.isfinite() and extremes.max.isfinite()):
            raise InputError(f"{self.origin}: tensor {self.name} holds NaN or infinite weights, the file is damaged")
        return values

    def parameter(self) -> Parameter:
        """The ir's view of it: a matrix in the encoding it is stored in, a vector (norm weight, bias) in f32."""
        if self.coded is not None:
            return Parameter(self.name, self.shape, self.coded.encoding, partial(_checked, self, self.coded))
        encoding = self.encoding if len(self.shape) > 1 else F32

        def load() -> EncodedTensor:
            return encode_float(self.values(), encoding)

        return Parameter(self.name, self.shape, encoding, load)


def _checked(stored: StoredTensor, coded: Coded) -> EncodedTensor:
    """The codes; InputError if a scale or an offset is NaN or infinite."""
    data = coded.load()
    for numbers in (data.scales, data.offsets):
        if numbers is not None and not numbers.isfinite().all():
            raise InputError(f"{stored.origin}: {stored.name} has NaN or infinite scales, the file is damaged")
    return data


@dataclass(frozen=True)
class IntegerTensor(StoredTensor):
    """A tensor of integers, out of which a method of `prequantized` makes weights. dtype: as safetensors has it."""

    dtype: str = ""

    def values(self) -> Tensor:
        """The integers, in their dtype."""
        return self.read()

    def parameter(self) -> Parameter:
        """Raises InputError: architectures can't use integers."""
        raise InputError(f"{self.origin}: tensor {self.name} is stored as {self.dtype}, which can't be weights")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: config, tensors by name, and what the runtime needs beside the weights.

    The fields from `tokenizer` to `generation` are those of `smc.ir.ModelFacts`. format: for the provenance,
    "safetensors" or "GGUF" with the types of its tensors (which are read as the floats they stand for). applied: kinds
    of transforms (`architectures.views`) that the format stores done.
    changes: what was done to it since, one line per change. source: the file or folder that all of it is in.
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
