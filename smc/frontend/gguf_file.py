"""The GGUF container: metadata and the place of every tensor.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; versions 2 and 3, little-endian. The `gguf` package's own
reader takes seconds for a large vocabulary and reads past the end of a file that was cut; its block formats are used.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smc.errors import InputError
from smc.frontend.weights_file import WeightsFile
from smc.ir import ceil_div

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
)
"""The tensor types that can be read: those that the gguf package decodes."""


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies. shape: row-major, the fastest dim last (the file lists it first). offset, size: bytes."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True)
class GGUFFile:
    """What the head of a GGUF file says."""

    file: WeightsFile
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    @property
    def path(self) -> Path:
        return self.file.path

    def bytes_of(self, tensor: GGUFTensor) -> np.ndarray:
        """uint8 [size]: the tensor's bytes, in memory of their own."""
        return self.file.read(tensor.offset, tensor.size)


def read_gguf(path: Path) -> GGUFFile:
    """Read the head of the file; InputError if it is cut short, of another version, or holds unsupported types."""
    file = WeightsFile.of(path)
    if file.size == 0:
        raise InputError(f"{path} is empty")
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
        cursor = _Cursor(mapped, path)
        tensor_count, metadata = _metadata(cursor)
        infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{path}: general.alignment must be a positive integer, not {alignment!r}")
    data = ceil_div(cursor.place, alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for name, shape, kind, offset in infos:
        tensor = _locate(path, name, shape, kind, data + offset)
        end = tensor.offset + tensor.size
        if end > file.size:
            raise InputError(f"{path} is incomplete: tensor {name} ends at byte {end:,}, the file at {file.size:,}")
        if name in tensors:
            raise InputError(f"{path} lists the tensor {name} twice")
        tensors[name] = tensor
    return GGUFFile(file, metadata, tensors)


class _Cursor:
    """Reads values one after another; InputError at the end of the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.place = data, path, 0

    def take(self, size: int) -> bytes:
        end = self.place + size
        if end > len(self.data):
            raise InputError(f"{self.path} is incomplete: it ends within its head, at byte {len(self.data):,}")
        piece = self.data[self.place : end]
        self.place = end
        return piece

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        # A vocabulary may hold bytes that are not UTF-8; such tokens are never matched, but must not stop the reader.
        return self.take(self.scalar("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise InputError(f"{self.path} is damaged: metadata of the unknown type {kind}")
        item, count = self.scalar("I"), self.scalar("Q")
        if item == STRING:
            return [self.string() for _ in range(count)]
        if item not in SCALARS:
            raise InputError(f"{self.path} is damaged: an array of the unknown type {item}")
        dtype = np.dtype(SCALARS[item]).newbyteorder("<")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()


def _metadata(cursor: _Cursor) -> tuple[int, dict[str, Any]]:
    """The number of tensors, and the key-value pairs."""
    if cursor.take(4) != b"GGUF":
        raise InputError(f"{cursor.path} is not a GGUF file")
    version = cursor.scalar("I")
    if version not in (2, 3):
        seen = "big-endian" if version & 0xFFFF == 0 else f"of GGUF version {version}"
        raise InputError(f"{cursor.path} is {seen}; versions 2 and 3, little-endian, can be read")
    tensor_count, pair_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {}
    for _ in range(pair_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    return tensor_count, metadata


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """name, shape, type number, offset within the data."""
    name, dims = cursor.string(), cursor.scalar("I")
    if dims > 4:
        raise InputError(f"{cursor.path} is damaged: tensor {name} has {dims} dims")
    shape = tuple(cursor.scalar("Q") for _ in range(dims))[::-1]
    return name, shape, cursor.scalar("I"), cursor.scalar("Q")


def _locate(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GGUFTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    known = {t.value: t for t in GGMLQuantizationType}
    label = known[kind].name if kind in known else f"number {kind}"
    if label not in TYPES:
        raise InputError(f"{path}: tensor {name} is of type {label}; supported are {', '.join(TYPES)}")
    block, block_bytes = GGML_QUANT_SIZES[known[kind]]
    if not shape or shape[-1] % block:
        raise InputError(
            f"{path} is damaged: a row of the tensor {name}, {list(shape)}, is not a whole number of {label} blocks"
        )
    count = 1
    for dim in shape:
        count *= dim
    return GGUFTensor(name, shape, known[kind], offset, count // block * block_bytes)
