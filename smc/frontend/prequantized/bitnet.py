"""BitNet b1.58 (Ma et al., 2024) as transformers stores and computes it.

Offline, `weight` is uint8 [rows / 4, columns], 2 bits per code (value + 1): a byte of row r holds rows r, r + rows/4,
r + 2·rows/4 and r + 3·rows/4 from the lowest bits on. weight_scale [1] divides in models of the class `bitlinear`, and
multiplies in those of `autobitlinear`. Online, `weight` holds the floats of the training, which every forward rounds by
their mean magnitude. Inputs are rounded to int8, one scale per token.
"""

from __future__ import annotations

from functools import partial

from smc.errors import InputError
from smc.frontend.checkpoint import IntegerTensor, StoredTensor
from smc.frontend.config import Config
from smc.frontend.prequantized.registry import Tensors, method
from smc.frontend.prequantized.tensors import Parts
from smc.ir import EncodedTensor, Encoding

TERNARY = Encoding.of(bits=2, zero=1, group="tensor", scale_dtype="f32", activation_group="token")
LEAST_MEAN = 1e-5


@method("bitnet")
def bitnet(config: Config, tensors: Tensors) -> Tensors:
    """Codes -1, 0 and 1 with the scale of their matrix."""
    kind = config.text("linear_class", "bitlinear")
    if kind not in ("bitlinear", "autobitlinear"):
        raise InputError(f"{config.origin}: linear_class {kind} is not supported, only bitlinear and autobitlinear")
    if config.flag("use_rms_norm", False):
        raise InputError(f"{config.origin}: norms in front of every product (use_rms_norm) are not supported")
    is_online = config.text("quantization_mode", "offline") == "online"
    kept = (*config.texts("modules_to_not_convert"), "lm_head", "embed_tokens")
    rest = dict(tensors)
    for parts in Parts.all_of(rest, "weight"):
        stored = rest[f"{parts.module}.weight"]
        if isinstance(stored, IntegerTensor):
            found = _packed(parts, divides=kind == "bitlinear")
        elif is_online and len(stored.shape) == 2 and not any(name in parts.module.split(".") for name in kept):
            found = parts.coded((stored.shape[0], stored.shape[1]), TERNARY, partial(_rounded, stored))
        else:
            continue
        rest[found.name] = found
    return rest


def _packed(parts: Parts, divides: bool) -> StoredTensor:
    packed, scale = parts.take_integers("weight", "U8"), parts.take("weight_scale")
    parts.check(scale, (1,), ())
    if len(packed.shape) != 2:
        raise InputError(f"{parts.origin}: {packed.name} has shape {list(packed.shape)}, expected a matrix")
    shape = (packed.shape[0] * 4, packed.shape[1])
    return parts.coded(shape, TERNARY, partial(_unpacked, packed, scale, divides))


def _unpacked(packed: IntegerTensor, scale: StoredTensor, divides: bool) -> EncodedTensor:
    import torch

    octets, factor = packed.values(), scale.values().float().reshape(1, 1)
    codes = torch.cat([octets >> shift & 3 for shift in (0, 2, 4, 6)])
    if (codes == 3).any():
        raise InputError(f"{packed.origin}: {packed.name} holds codes that are not ternary, the file is damaged")
    if divides and not factor.all():
        raise InputError(f"{scale.origin}: {scale.name} is 0, by which bitlinear would divide")
    scales = 1 / factor if divides else factor
    return EncodedTensor(TERNARY, tuple(codes.shape), codes=codes[:, None, :].contiguous(), scales=scales)


def _rounded(stored: StoredTensor) -> EncodedTensor:
    import torch

    values = stored.values().float()
    mean = values.abs().mean().clamp(min=LEAST_MEAN)
    codes = (values * (1 / mean)).round().clamp(-1, 1).add(1).to(torch.uint8)
    return EncodedTensor(TERNARY, stored.shape, codes=codes[:, None, :].contiguous(), scales=mean.reshape(1, 1))
