"""The pass `quantize-gptq`: integers rounded column after column, each error made good by the later columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smc.passes.integers import IntegerQuantizer
from smc.passes.registry import register
from smc.passes.sequential import SequentialQuantizer
from smc.passes.statistics import GroupStatistics

if TYPE_CHECKING:
    from torch import Tensor


@register("quantize-gptq")
@dataclass(frozen=True)
class QuantizeGPTQ(IntegerQuantizer, SequentialQuantizer):
    """GPTQ (arXiv 2210.17323): round so that products with the inputs of a calibration text change least.

    Columns are rounded one after the other, and the error of each is spread over those that are still to come. The
    layers are done in order, each with inputs that come through the quantized ones before it. Needs --calib FILE.
    damping: how much of the mean square of all inputs is added to that of each: more trusts a short text less.
    order: natural (from the first column to the last) or importance (those with the largest inputs first).
    bits, group, symmetric, search, scale_dtype, super_group, activation, activation_group: as for quantize-rtn, but
    that the errors which the search compares are weighted by the mean squares of the inputs.
    include, exclude: glob patterns on parameter names, slots and roles (model.layers.0.*, v_proj, value).
    """

    def __post_init__(self) -> None:
        IntegerQuantizer.__post_init__(self)
        SequentialQuantizer.__post_init__(self)

    def scales(self, groups: Tensor, statistics: GroupStatistics) -> tuple[Tensor, ...]:
        """Those that lose least if the weights were rounded to nearest; see `SequentialQuantizer.scales`."""
        scales, zeros = self.grid(groups, self._importance(statistics))
        return (scales,) if self.symmetric else (scales, zeros)

    def _importance(self, statistics: GroupStatistics) -> Tensor | None:
        """The mean squares of the inputs, damped as their products are, in the shape of the groups."""
        if statistics.inputs is None:
            return None
        assert statistics.inputs.second_moments is not None
        squares = statistics.inputs.second_moments.diagonal()
        mean = squares.mean()
        return statistics.grouped(squares + self.damping * mean) if mean > 0 else None
