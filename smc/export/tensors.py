"""From a module's parameters to the tensors of a checkpoint: the inverse of `smc.frontend.architectures.views`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.stacks import names_of
from smc.frontend.architectures.views import Source
from smc.ir import EncodedTensor, Module, Parameter

if TYPE_CHECKING:
    from torch import Tensor

BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "U8": 1, "I8": 1}


@dataclass(frozen=True)
class Stored:
    """One tensor to write. dtype: safetensors's name. load: its values, in that dtype and shape."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Tensor] = field(repr=False, compare=False)

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * BYTES[self.dtype]


@dataclass
class Place:
    """A tensor of a checkpoint and the parameters that are its parts, each with the view that it fills."""

    name: str
    parts: list[tuple[Source, Parameter]]

    @property
    def whole(self) -> Parameter | None:
        """The parameter that is the whole tensor, unchanged; None if the tensor has several parts or is transformed."""
        source, parameter = self.parts[0]
        plain = source.rows is None and source.columns is None and source.transform is None
        return parameter if len(self.parts) == 1 and plain else None

    def dense(self, dtype: str) -> Stored:
        """The tensor as floats: vectors in f32, matrices in `dtype` ("F16")."""
        shape = self._stored_shape()
        return Stored(self.name, shape, "F32" if len(shape) == 1 else dtype, partial(self._values, dtype))

    def _result_shape(self) -> tuple[int, ...]:
        """The shape of all parts together, before their transform is undone."""
        shapes = [parameter.shape for _, parameter in self.parts]
        if len(shapes) == 1:
            return shapes[0]
        by_rows = self.parts[0][0].rows is not None
        total = sum(shape[0 if by_rows else -1] for shape in shapes)
        return (total, *shapes[0][1:]) if by_rows else (*shapes[0][:-1], total)

    def _stored_shape(self) -> tuple[int, ...]:
        transform, shape = self.parts[0][0].transform, self._result_shape()
        return shape if transform is None else transform.shape(shape)  # those that change it undo themselves

    def _values(self, dtype: str) -> Tensor:
        import torch

        pieces = []
        for source, parameter in self.parts:
            values = parameter.values()
            place = source.rows or source.columns
            pieces.append((0 if place is None else place.start, values))
        dim = 0 if self.parts[0][0].rows is not None else -1
        pieces.sort(key=lambda piece: piece[0])
        result = pieces[0][1] if len(pieces) == 1 else torch.cat([values for _, values in pieces], dim)
        transform = self.parts[0][0].transform
        result = result if transform is None else transform.undo(result)
        target = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        return result.to(target["F32" if result.dim() == 1 else dtype]).contiguous()


def places_of(module: Module, decoder: Decoder) -> list[Place]:
    """Every tensor of the checkpoint, in the order of use."""
    found: dict[str, Place] = {}
    blocks = [decoder.embed, *decoder.layers, decoder.head]
    for (call, _), block in zip(module.calls(), blocks, strict=True):
        for slot, source in block.sources.items():
            parameter = module.parameters[call.attributes["parameters"][slot]]
            place = found.setdefault(source.name, Place(source.name, []))
            if source not in [known for known, _ in place.parts]:
                place.parts.append((source, parameter))
    return [matrix for place in found.values() for matrix in _matrices(place, decoder.stacks)]


def _matrices(place: Place, stacks: Mapping[str, str]) -> list[Place]:
    """The places of the matrices of a stack, each by itself; of others the place."""
    if place.name not in stacks:
        return [place]
    [(_, stack)] = place.parts
    found = []
    for number, name in enumerate(names_of(stacks[place.name], stack.shape[0])):
        own = Parameter(name, stack.shape[1:], stack.encoding, partial(_matrix, stack, number))
        found.append(Place(name, [(Source(name), own)]))
    return found


def _matrix(stack: Parameter, number: int) -> EncodedTensor:
    return stack.load().matrix(number)
