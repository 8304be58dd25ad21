"""The parameters of a module during training: what is trained, and the weight that a step computes with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from smc.ir import EncodedTensor, Encoding, Parameter, encode_float
from smc.reference.activations import straight_through
from smc.reference.weight import Weight

Round = Callable[[Tensor], EncodedTensor]
"""A quantizer as a function from values to codes and scales."""


class Fixed(nn.Module):
    """A parameter that is not trained."""

    values: Tensor

    def __init__(self, parameter: Parameter, rounding: Round | None = None) -> None:
        super().__init__()
        data = parameter.load()
        data = data if rounding is None else rounding(data.decode())
        self.encoding, self.order = data.encoding, None if data.order is None else data.order.long()
        self.register_buffer("values", data.decode(), persistent=False)

    def forward(self) -> Weight:
        """The values that the reference computes with."""
        return Weight(self.values, self.encoding, self.order)


class Trained(nn.Module):
    """Floats that are trained; with a rounding, every step computes with their rounded values.

    Gradients ignore the rounding (the straight-through estimator of Bengio et al., arXiv 1308.3432).
    """

    def __init__(self, parameter: Parameter, rounding: Round | None = None) -> None:
        super().__init__()
        self.latent, self.rounding = nn.Parameter(parameter.values()), rounding
        self.encoding = parameter.encoding

    def forward(self) -> Weight:
        """The values of this step."""
        if self.rounding is None:
            return Weight(self.latent, self.encoding)
        with torch.no_grad():
            data = self.rounding(self.latent.detach())
        return Weight(straight_through(self.latent, data.decode()), data.encoding)

    def result(self) -> dict[str, Tensor]:
        """What is stored: the floats, not rounded."""
        return {"values": self.latent.detach()}


class LowRank(nn.Module):
    """A fixed matrix plus scaling · B·A, which is trained (Hu et al., "LoRA", arXiv 2106.09685); B begins as zero."""

    base: Tensor

    def __init__(self, parameter: Parameter, rank: int, alpha: float, seed: int, rounding: Round | None) -> None:
        super().__init__()
        rows, columns = parameter.shape
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("base", parameter.values(), persistent=False)
        bound = 1 / math.sqrt(columns)  # PEFT's Kaiming initialization with a = sqrt(5)
        self.a = nn.Parameter((torch.rand(rank, columns, generator=generator) * 2 - 1) * bound)
        self.b = nn.Parameter(torch.zeros(rows, rank))
        self.scaling, self.rounding, self.encoding = alpha / rank, rounding, parameter.encoding

    def merged(self) -> Tensor:
        """base + scaling · B·A."""
        return self.base + (self.b.float() @ self.a.float()) * self.scaling

    def forward(self) -> Weight:
        """The merged matrix, perhaps rounded."""
        values = self.merged()
        if self.rounding is None:
            return Weight(values, self.encoding)
        with torch.no_grad():
            data = self.rounding(values.detach())
        return Weight(straight_through(values, data.decode()), data.encoding)

    def result(self) -> dict[str, Tensor]:
        """The merged matrix and its two factors."""
        with torch.no_grad():
            return {"values": self.merged(), "a": self.a.detach(), "b": self.b.detach()}


class Rescaled(nn.Module):
    """A quantized matrix: its codes are fixed, its scales (and offsets) are trained."""

    def __init__(self, parameter: Parameter) -> None:
        super().__init__()
        self.data = parameter.load()
        assert self.data.scales is not None
        self.scales = nn.Parameter(self.data.scales.clone())
        self.offsets = None if self.data.offsets is None else nn.Parameter(self.data.offsets.clone())

    def forward(self) -> Weight:
        """Codes times the scales of this step."""
        data = replace(self.data, scales=self.scales, offsets=self.offsets)
        return Weight(data.decode(), data.encoding, None if data.order is None else data.order.long())

    def result(self) -> dict[str, Tensor]:
        """The scales."""
        return {
            "scales": self.scales.detach(),
            **({} if self.offsets is None else {"offsets": self.offsets.detach()}),
        }


Leaf = Fixed | Trained | LowRank | Rescaled


def stored(parameter: Parameter, parts: dict[str, Tensor]) -> EncodedTensor:
    """A parameter with its trained values, in its old encoding."""
    if "values" in parts:
        return encode_float(parts["values"].reshape(parameter.shape), parameter.encoding)
    data = parameter.load()
    scales = _rounded(parts["scales"], data.encoding)
    offsets = _rounded(parts["offsets"], data.encoding) if "offsets" in parts else data.offsets
    return replace(data, scales=scales, offsets=offsets)


def _rounded(values: Tensor, encoding: Encoding) -> Tensor:
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[encoding.scales.dtype]
    return values.to(dtype).float()
