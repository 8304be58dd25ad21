"""GPTQ (Frantar et al., 2022), as AutoGPTQ and GPTQModel store it.

qweight int32 [columns · bits / 32, rows], packed along the columns of the matrix from the lowest bit on; qzeros int32
[groups, rows · bits / 32]; scales [groups, rows]; g_idx int32 [columns], the group of every column. A weight is scale ·
(code - zero). The first layout ("gptq") stores zeros less 1, modulo 2**bits; "gptq_v2" stores them as they are.
"""

from __future__ import annotations

from functools import partial

from smc.errors import InputError
from smc.fields import Range
from smc.frontend.checkpoint import IntegerTensor, StoredTensor
from smc.frontend.config import Config
from smc.frontend.prequantized.registry import Tensors, method
from smc.frontend.prequantized.tensors import Groups, Parts, scale_type, unpack
from smc.ir import EncodedTensor, Encoding, ceil_div

BITS = Range(2, 8, "2, 3, 4 or 8")
GROUP = Range(-1, 1 << 20, "-1 or a number of columns")


@method("gptq")
def gptq(config: Config, tensors: Tensors) -> Tensors:
    """Codes stay codes; act-order is the order of stored columns."""
    bits = config.integer("bits", within=BITS)
    if bits not in (2, 3, 4, 8):
        raise config.fault("bits", BITS.wanted)
    size = config.integer("group_size", within=GROUP)
    if config.values.get("dynamic"):
        raise InputError(f"{config.origin}: GPTQ with settings of its own per module (dynamic) is not supported")
    layout = config.text("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise InputError(f"{config.origin}: the GPTQ layout {layout} is not supported, only gptq and gptq_v2")
    rest = dict(tensors)
    for parts in Parts.all_of(rest, "qweight", "qzeros", "scales"):
        found = _matrix(parts, bits, size, plus=int(layout == "gptq"))
        rest[found.name] = found
    return rest


def _matrix(parts: Parts, bits: int, size: int, plus: int) -> StoredTensor:
    words = parts.take_integers("qweight", "I32")
    zeros = parts.take_integers("qzeros", "I32")
    scales = parts.take("scales")
    index = parts.take_optional("g_idx")
    if len(words.shape) != 2 or words.shape[0] * 32 % bits:
        raise InputError(f"{parts.origin}: {words.name} has shape {list(words.shape)}, no whole {bits}-bit codes")
    columns, rows = words.shape[0] * 32 // bits, words.shape[1]
    if index is not None and not isinstance(index, IntegerTensor):
        raise InputError(f"{parts.origin}: {index.name} holds floats, expected integers")
    groups = Groups("row" if size <= 0 or size >= columns else size, columns, index)
    if index is not None:
        parts.check(index, (columns,))
    parts.check(scales, (groups.count, rows))
    parts.check(zeros, (groups.count, ceil_div(rows * bits, 32)))
    encoding = Encoding.of(
        bits=bits, zero="stored", group=groups.size, scale_dtype=scale_type(scales), permuted=groups.order is not None
    )
    return parts.coded((rows, columns), encoding, partial(_load, encoding, groups, words, zeros, scales, plus))


def _load(
    encoding: Encoding, groups: Groups, words: IntegerTensor, zeros: IntegerTensor, scales: StoredTensor, plus: int
) -> EncodedTensor:
    rows, bits = words.shape[1], encoding.bits
    stored = unpack(zeros.values(), bits)[:, :rows].T
    return EncodedTensor(
        encoding,
        (rows, groups.columns),
        codes=groups.stored(unpack(words.values().T, bits)),
        scales=scales.values().float().T.contiguous(),
        zeros=(stored + plus & (1 << bits) - 1).contiguous(),
        order=groups.order,
    )
