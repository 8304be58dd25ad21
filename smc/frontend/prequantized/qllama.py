"""deepgrove's Bonsai: a Llama of the class `QLlama…`, whose linear layers are ternary with a scale per row.

`weight` [rows, columns] holds the floats of the training; the layer multiplies by round(clamp(w, -1, 1)), halves to
even, and the product by `scales` [rows]. Its inputs are floats.
https://github.com/deepgrove-ai/Bonsai, model/qlinear.py
"""

from __future__ import annotations

from functools import partial

from smc.errors import InputError
from smc.frontend.checkpoint import StoredTensor
from smc.frontend.prequantized.registry import Tensors
from smc.frontend.prequantized.tensors import Parts, scale_type
from smc.ir import EncodedTensor, Encoding


def has_row_scales(tensors: Tensors) -> bool:
    """Whether some layer stores `scales` beside its weight. QLlama has no `quantization_config` that says so."""
    return any(name.endswith(".scales") for name in tensors)


def qllama(tensors: Tensors) -> Tensors:
    """Codes -1, 0 and 1 with the scales of their rows; InputError if a part is missing or of another shape."""
    rest = dict(tensors)
    for parts in Parts.all_of(rest, "scales"):
        weight, scales = parts.take("weight"), parts.take("scales")
        if len(weight.shape) != 2:
            raise InputError(f"{parts.origin}: {weight.name} has shape {list(weight.shape)}, expected a matrix")
        rows, columns = weight.shape
        parts.check(scales, (rows,), (rows, 1))
        encoding = Encoding.of("base3", group="row", scale_dtype=scale_type(scales), activation="none")
        found = parts.coded((rows, columns), encoding, partial(_rounded, weight, scales, encoding))
        rest[found.name] = found
    return rest


def _rounded(weight: StoredTensor, scales: StoredTensor, encoding: Encoding) -> EncodedTensor:
    import torch

    codes = weight.values().float().clamp(-1, 1).round().add(1).to(torch.uint8)
    stored = scales.values().float().reshape(-1, 1)
    return EncodedTensor(encoding, weight.shape, codes=codes[:, None, :].contiguous(), scales=stored)
