"""The pass `quantize-nf4`: the codebook NormalFloat4 of QLoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from smc.ir import Encoding
from smc.passes.integers import check_group
from smc.passes.registry import register
from smc.passes.statistics import GroupStatistics
from smc.passes.weight_quantizer import WeightQuantizer

if TYPE_CHECKING:
    from torch import Tensor

NF4_LEVELS = (
    *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004),
    *(0.0, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
"""Quantiles of the normal distribution, scaled to [-1, 1], 0 among them (arXiv 2305.14314, appendix E)."""


@register("quantize-nf4")
@dataclass(frozen=True)
class QuantizeNF4(WeightQuantizer):
    """4-bit NormalFloat (arXiv 2305.14314): 16 entries, denser near zero, times the largest magnitude of a group.

    grid: f32 (the entries as in the paper; inputs stay floats) or i8 (entries rounded to multiples of 1/127, by at most
    0.4 % of a group's largest weight, for integer dot products with int8 inputs: several times faster). group: 16 to
    128 neighbouring inputs, or row. include, exclude: glob patterns on parameter names, slots and roles (v_proj,
    value).
    """

    grid: Literal["f32", "i8"] = "f32"
    group: int | Literal["row"] = 64

    def __post_init__(self) -> None:
        check_group(self.name, self.group)

    def encoding(self) -> Encoding:
        """A codebook of 16 entries; on the int8 grid they are 127 times as large."""
        levels = NF4_LEVELS if self.grid == "f32" else tuple(round(127 * level) for level in NF4_LEVELS)
        return Encoding.of(bits=4, codebook=levels, grid=self.grid, group=self.group)

    def quantize(self, groups: Tensor, statistics: GroupStatistics) -> tuple[Tensor, ...]:
        """The nearest entry for every weight; the lower one if two are equally near."""
        import torch

        levels = torch.tensor(self.encoding().entries)
        scales = self.round_scales(groups.abs().amax(-1) / levels[-1])
        inverse = (1 / scales).masked_fill_(scales == 0, 0)
        return torch.bucketize(groups * inverse[..., None], (levels[1:] + levels[:-1]) / 2), scales
