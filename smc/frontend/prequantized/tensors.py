"""Common parts of the methods: the stored tensors of one matrix, and unpacking codes from words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from smc.errors import InputError
from smc.frontend.checkpoint import Coded, IntegerTensor, StoredTensor
from smc.ir import F32, EncodedTensor, Encoding, ceil_div

if TYPE_CHECKING:
    from torch import Tensor

ScaleType = Literal["f16", "bf16", "f32"]


@dataclass(frozen=True)
class Parts:
    """The tensors of one matrix; they are removed from `tensors`."""

    module: str
    tensors: dict[str, StoredTensor]
    origin: str

    @classmethod
    def all_of(cls, tensors: dict[str, StoredTensor], *parts: str) -> list[Parts]:
        """Every matrix that has one of these parts ("qweight", …)."""
        found = {}
        for name, tensor in tensors.items():
            module, _, part = name.rpartition(".")
            if part in parts:
                found[module] = cls(module, tensors, tensor.origin)
        return list(found.values())

    def take(self, part: str) -> StoredTensor:
        """A tensor of floats; InputError if it is missing or holds integers."""
        found = self.take_optional(part)
        if found is None:
            raise InputError(f"{self.origin}: {self.module} lacks {part}, so its quantization can't be undone")
        if isinstance(found, IntegerTensor):
            raise InputError(f"{self.origin}: {found.name} holds integers, expected floats")
        return found

    def take_integers(self, part: str, *dtypes: str) -> IntegerTensor:
        """A tensor of one of these integer types ("I32"); InputError if it is missing or of another."""
        found = self.take_optional(part)
        if found is None:
            raise InputError(f"{self.origin}: {self.module} lacks {part}, so its quantization can't be undone")
        if not isinstance(found, IntegerTensor) or found.dtype not in dtypes:
            stored = found.dtype if isinstance(found, IntegerTensor) else str(found.encoding)
            raise InputError(f"{self.origin}: {found.name} is stored as {stored}, expected {' or '.join(dtypes)}")
        return found

    def take_optional(self, part: str) -> StoredTensor | None:
        """A tensor that may be missing."""
        return self.tensors.pop(f"{self.module}.{part}", None)

    def check(self, tensor: StoredTensor, *shapes: tuple[int, ...]) -> None:
        """InputError if a tensor has none of the shapes that the quantization_config implies."""
        if tensor.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise InputError(
                f"{self.origin}: {tensor.name} has shape {list(tensor.shape)}, where the quantization_config makes it "
                f"{wanted}"
            )

    def coded(self, shape: tuple[int, int], encoding: Encoding, load: Callable[[], EncodedTensor]) -> StoredTensor:
        """The matrix as architectures expect it."""

        def read() -> Tensor:
            return load().decode()

        return StoredTensor(f"{self.module}.weight", shape, F32, read, self.origin, Coded(encoding, load))


@dataclass(frozen=True)
class Groups:
    """Which columns share a scale. size: columns per group, or "row". count: of groups in a row of `columns`.

    index: the group of every column if it does not follow from the column's place (act-order).
    """

    size: int | Literal["row"]
    columns: int
    index: IntegerTensor | None = None

    @property
    def width(self) -> int:
        """Columns per group."""
        return self.columns if self.size == "row" else self.size

    @property
    def count(self) -> int:
        """Groups per row."""
        return ceil_div(self.columns, self.width)

    @cached_property
    def order(self) -> Tensor | None:
        """int32 [columns]: stored position → column, None if columns stand in order. InputError if groups differ
        in size from what the config says."""
        import torch

        if self.index is None:
            return None
        found, plain = self.index.values().long(), torch.arange(self.columns) // self.width
        order = torch.argsort(found, stable=True)
        if found.equal(plain):
            return None
        if not found[order].equal(plain):
            raise InputError(f"{self.index.origin}: {self.index.name} has no groups of {self.width} columns each")
        return order.to(torch.int32)

    def stored(self, codes: Tensor) -> Tensor:
        """uint8 [rows, columns] → [rows, groups, width] in stored order, padded by zeros."""
        import torch

        if self.order is not None:
            codes = codes[:, self.order.long()]
        padded = torch.nn.functional.pad(codes, (0, self.count * self.width - self.columns))
        return padded.reshape(len(codes), self.count, self.width)


def scale_type(tensor: StoredTensor) -> ScaleType:
    """The dtype of stored scales."""
    return tensor.encoding.float_dtype


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 [n, words] → uint8 [n, words · 32 // bits]: codes one after another, from the lowest bit of each row on."""
    import numpy as np
    import torch

    assert sys.byteorder == "little"
    octets = words.contiguous().view(torch.uint8)
    if bits == 8:
        return octets
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        return (octets[..., None] >> shifts & (1 << bits) - 1).flatten(1)
    count = words.shape[1] * 32 // bits
    single = np.unpackbits(octets.numpy(), axis=1, bitorder="little")[:, : count * bits]
    return torch.from_numpy(np.packbits(single.reshape(len(words), count, bits), axis=2, bitorder="little")[..., 0])
