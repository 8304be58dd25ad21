"""The pass `quantize-codebook`: entries that fit the distribution of weights, scales of two levels; no calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from smc.errors import InputError
from smc.ir import Encoding
from smc.passes.menu import CODEBOOKS, GROUP, SCALE_DTYPE
from smc.passes.registry import register
from smc.passes.rounding import SMALLEST, Levels
from smc.passes.statistics import GroupStatistics
from smc.passes.weight_quantizer import WeightQuantizer

if TYPE_CHECKING:
    from torch import Tensor

SUPER_GROUP = 64
"""The number of scales per super-group: those of 2,048 columns, a whole row of small models."""


@register("quantize-codebook")
@dataclass(frozen=True)
class QuantizeCodebook(WeightQuantizer):
    """Round to the nearest entry of a codebook on the int8 grid, groups of 32 with two-level scales; no calibration.

    Entries are denser where weights are frequent (see smc/passes/menu.py): they lose no more than integers with stored
    zeros, which take 0.35 bits per weight more. bits: 2 to 5. search: how many scales below that of the full range are
    tried, by the squared error of the weights. activation: i8 (inputs rounded to int8) or none (float inputs).
    include, exclude: glob patterns on parameter names, slots and roles (model.layers.0.*, v_proj, value).
    """

    bits: int = 4
    search: int = 6
    activation: Literal["i8", "none"] = "i8"

    def __post_init__(self) -> None:
        if self.bits not in CODEBOOKS:
            raise InputError(f"{self.name} takes {', '.join(map(str, CODEBOOKS))} bits, not {self.bits}")
        if self.search < 0:
            raise InputError(f"search of {self.name} must be a number of steps, 0 or more, not {self.search}")

    def encoding(self) -> Encoding:
        """A codebook, 8 bits per scale, 16 per 64 of them."""
        return Encoding.of(
            bits=self.bits,
            codebook=CODEBOOKS[self.bits],
            group=GROUP,
            super_group=SUPER_GROUP,
            scale_dtype=SCALE_DTYPE,
            activation=self.activation,
        )

    def quantize(self, groups: Tensor, statistics: GroupStatistics) -> tuple[Tensor, ...]:
        """Codes and scales; see `WeightQuantizer.quantize`."""
        levels = Levels(self.encoding())
        scales = self.round_scales(self._best_scales(groups, levels, statistics.mask))
        inverse = (1 / scales).masked_fill_(scales == 0, 0)
        return levels.codes(groups * inverse[..., None]), scales

    def _best_scales(self, groups: Tensor, levels: Levels, mask: Tensor) -> Tensor:
        """The scales with the least squared error among those tried, each refitted to the entries that it gives.

        For entries l of weights w the best scale is Σwl / Σl², and its error is Σw² - (Σwl)² / Σl².
        """
        import torch

        widest = levels.covering(groups.amax(-1), groups.amin(-1))
        best, gain = widest, torch.full_like(widest, -1.0)
        for step in range(self.search + 1):
            fraction = 1 - (1 - SMALLEST[self.bits]) * step / max(1, self.search)
            near = levels.nearest(groups / (fraction * widest)[..., None]).mul_(mask)
            products = (near * groups).sum(-1)
            scales = products / near.square_().sum(-1).clamp_(min=1)
            better = scales * products > gain
            gain = torch.where(better, scales * products, gain)
            best = torch.where(better & (scales > 0), scales, best)
        return best
