"""The pass `quantize-rtn`: round to nearest, with a search for the best scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smc.passes.integers import IntegerQuantizer
from smc.passes.registry import register
from smc.passes.statistics import GroupStatistics

if TYPE_CHECKING:
    from torch import Tensor


@register("quantize-rtn")
@dataclass(frozen=True)
class QuantizeRTN(IntegerQuantizer):
    """Round weights to the nearest code of integers with one scale per group; needs no calibration.

    bits: 2 to 8. group: 16 to 128 neighbouring inputs share a scale, or row. symmetric: the zero is the middle code;
    otherwise every group stores a zero of its own. search: how many smaller and how many larger scales are tried
    besides that of the full range, by the squared error of the weights; 0 takes the full range (plain min-max).
    scale_dtype: f16, bf16 or f32. super_group: this many scales are stored in 8 bits each, as multiples of one in
    scale_dtype. activation: i8 (inputs rounded to int8) or none (float inputs). activation_group: 32, 64 or 128
    neighbouring inputs that share a scale, or token: all of them.
    include, exclude: glob patterns on parameter names, slots and roles (model.layers.0.*, v_proj, value).
    """

    def quantize(self, groups: Tensor, statistics: GroupStatistics) -> tuple[Tensor, ...]:
        """Codes and scales, and zeros if asymmetric; see `WeightQuantizer.quantize`."""
        scales, zeros = self.grid(groups)
        scales = self.round_scales(scales)
        # A scale below the smallest number of its dtype is stored as 0, and decodes to 0 whatever the codes.
        inverse = (1 / scales).masked_fill_(scales == 0, 0)
        codes = (groups * inverse[..., None]).round_().add_(zeros[..., None]).clamp_(0, (1 << self.bits) - 1)
        return (codes, scales) if self.symmetric else (codes, scales, zeros)
