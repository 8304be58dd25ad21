"""AWQ (Lin et al., 2023) in the layout of AutoAWQ's GEMM kernels.

qweight int32 [columns, rows / 8], 4 bits per code, packed along the rows of the matrix; the nibbles of a word, from the
lowest on, hold rows 0, 2, 4, 6, 1, 3, 5 and 7 of the eight. qzeros int32 [groups, rows / 8] likewise; scales [groups,
rows]. A weight is scale · (code - zero).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.frontend.checkpoint import IntegerTensor, StoredTensor
from smc.frontend.config import Config
from smc.frontend.prequantized.gptq import BITS, GROUP
from smc.frontend.prequantized.registry import Tensors, method
from smc.frontend.prequantized.tensors import Groups, Parts, scale_type, unpack
from smc.ir import EncodedTensor, Encoding

if TYPE_CHECKING:
    from torch import Tensor

NIBBLES = [0, 4, 1, 5, 2, 6, 3, 7]
"""The nibble of every one of eight rows."""


@method("awq")
def awq(config: Config, tensors: Tensors) -> Tensors:
    """Codes and zeros stay as they are."""
    version = config.text("version", "gemm").lower()
    if version != "gemm":
        raise InputError(f"{config.origin}: the AWQ layout {version} is not supported, only gemm")
    if config.integer("bits", 4, BITS) != 4:
        raise config.fault("bits", "4")
    size = config.integer("group_size", 128, GROUP)
    rest = dict(tensors)
    for parts in Parts.all_of(rest, "qweight", "qzeros", "scales"):
        found = _matrix(parts, size)
        rest[found.name] = found
    return rest


def _matrix(parts: Parts, size: int) -> StoredTensor:
    words = parts.take_integers("qweight", "I32")
    zeros = parts.take_integers("qzeros", "I32")
    scales = parts.take("scales")
    if len(words.shape) != 2:
        raise InputError(f"{parts.origin}: {words.name} has shape {list(words.shape)}, expected a matrix")
    columns, rows = words.shape[0], words.shape[1] * 8
    groups = Groups("row" if size <= 0 or size >= columns else size, columns)
    parts.check(scales, (groups.count, rows))
    parts.check(zeros, (groups.count, rows // 8))
    encoding = Encoding.of(bits=4, zero="stored", group=groups.size, scale_dtype=scale_type(scales))
    return parts.coded((rows, columns), encoding, partial(_load, encoding, groups, words, zeros, scales))


def _load(
    encoding: Encoding, groups: Groups, words: IntegerTensor, zeros: IntegerTensor, scales: StoredTensor
) -> EncodedTensor:
    return EncodedTensor(
        encoding,
        (scales.shape[1], groups.columns),
        codes=groups.stored(_rows(words.values()).T),
        scales=scales.values().float().T.contiguous(),
        zeros=_rows(zeros.values()).T.contiguous(),
    )


def _rows(words: Tensor) -> Tensor:
    """int32 [n, words] → uint8 [n, rows], in order."""
    return unpack(words, 4).reshape(len(words), -1, 8)[..., NIBBLES].flatten(1)
