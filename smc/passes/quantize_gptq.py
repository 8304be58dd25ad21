"""The pass `quantize-gptq`: integers rounded column after column; later columns compensate for the error of each."""

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

    Columns are rounded one after the other, and the error of each is spread over the later ones. Layers are quantized
    in order; the quantized layers before compute the inputs of each. Needs --calib FILE. damping: how much of the mean
    square of all inputs is added to that of each; take more for a short text.
    order: natural (from the first column to the last) or importance (those with the largest inputs first).
    bits, group, symmetric, search, scale_dtype, super_group, activation, activation_group: as for quantize-rtn, but the
    search weights errors by the mean squares of the inputs.
    include, exclude: glob patterns on parameter names, slots and roles (model.layers.0.*, v_proj, value).
    """

    def __post_init__(self) -> None:
        IntegerQuantizer.__post_init__(self)
        SequentialQuantizer.__post_init__(self)

    def scales(self, groups: Tensor, statistics: GroupStatistics) -> tuple[Tensor, ...]:
        """The scales that lose least if weights are rounded to nearest; see `SequentialQuantizer.scales`."""
        scales, zeros = self.grid(groups, self._importance(statistics))
        return (scales,) if self.symmetric else (scales, zeros)

    def _importance(self, statistics: GroupStatistics) -> Tensor | None:
        """The damped mean squares of the inputs, in the shape of the groups."""
        if statistics.inputs is None:
            return None
        assert statistics.inputs.second_moments is not None
        squares = statistics.inputs.second_moments.diagonal()
        mean = squares.mean()
        return statistics.grouped(squares + self.damping * mean) if mean > 0 else None
