"""The pass `quantize-ternary`: weights -1, 0 and 1, for models trained for them."""

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


@register("quantize-ternary")
@dataclass(frozen=True)
class QuantizeTernary(WeightQuantizer):
    """Round weights to -1, 0 and 1 by their mean magnitude, as in BitNet b1.58 (arXiv 2402.17764); no calibration.

    storage: packed (2 bits per weight, faster) or base3 (5 weights per byte, smaller). group: weights that share a
    scale: tensor, row, or 16 to 128 neighbouring inputs. scale_dtype: f16, bf16 or f32. activation_group: inputs that
    share a scale: token, 32, 64 or 128. include, exclude: glob patterns on parameter names, slots and
    roles (v_proj, value).
    """

    storage: Literal["packed", "base3"] = "packed"
    group: int | Literal["row", "tensor"] = "tensor"
    scale_dtype: Literal["f16", "bf16", "f32"] = "f16"
    activation_group: Literal["token", 32, 64, 128] = "token"

    def __post_init__(self) -> None:
        if self.group != "tensor":
            check_group(self.name, self.group)

    def encoding(self) -> Encoding:
        """Codes 0, 1 and 2 for -1, 0 and 1."""
        return Encoding.of(
            self.storage,
            bits=2,
            zero=1,
            group=self.group,
            scale_dtype=self.scale_dtype,
            activation_group=self.activation_group,
        )

    def quantize(self, groups: Tensor, statistics: GroupStatistics) -> tuple[Tensor, ...]:
        """The scale is the mean magnitude; codes are rounded to it and clipped."""
        magnitudes = groups.abs().sum(-1) / statistics.mask.sum(-1)
        scales = self.round_scales(magnitudes)
        inverse = (1 / scales).masked_fill_(scales == 0, 0)
        return (groups * inverse[..., None]).round_().clamp_(-1, 1).add_(1), scales
