"""The pass `awq`: activation-aware scaling, which rounds columns with large inputs more finely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from smc.errors import InputError
from smc.passes.equalize import Equalizer
from smc.passes.quantize_rtn import QuantizeRTN
from smc.passes.registry import register
from smc.passes.statistics import InputStatistics, Statistic

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 20
"""How many powers are tried, as in the paper."""


@register("awq")
@dataclass(frozen=True)
class AWQ(Equalizer):
    """AWQ (arXiv 2306.00978): multiply the columns with the largest inputs by factors before they are rounded.

    The factor of a column is its mean |input| to a power between 0 and 1. Of 20 powers the pass takes the one with
    which products with the inputs of a calibration text change least when weights are rounded to nearest. It changes no
    result by itself: put it before quantize-rtn, with the same options. It scales inputs that a norm computes (those of
    q, k, v, gate and up). bits, group, symmetric: those of the rounding that is tried.
    """

    statistics: ClassVar[frozenset[Statistic]] = frozenset({"second-moments", "magnitudes"})

    bits: int = 4
    group: int | Literal["row"] = 32
    symmetric: bool = True

    def __post_init__(self) -> None:
        self._rounding()

    def _rounding(self) -> QuantizeRTN:
        try:
            return QuantizeRTN(bits=self.bits, group=self.group, symmetric=self.symmetric, search=0)
        except InputError as error:
            raise InputError(str(error).replace(QuantizeRTN.name, self.name)) from None

    def factors(self, matrices: Sequence[Tensor], inputs: InputStatistics) -> Tensor:
        """The factors of the best power, divided by the root of the largest times the smallest, as in the paper's
        code."""
        import torch

        assert inputs.magnitudes is not None and inputs.second_moments is not None
        best, least = torch.ones_like(inputs.magnitudes), float("inf")
        for step in range(STEPS):
            factors = inputs.magnitudes.pow(step / STEPS).clamp(min=1e-4)
            factors = factors / (factors.max() * factors.min()).sqrt()
            lost = sum(self._lost(matrix, factors, inputs.second_moments) for matrix in matrices)
            if lost < least:
                best, least = factors, lost
        return best

    def _lost(self, matrix: Tensor, factors: Tensor, moments: Tensor) -> float:
        """The squared error of the products, per token, when the scaled columns are rounded."""
        error = self._rounding().encode(matrix * factors).decode() / factors - matrix
        return float(((error @ moments) * error).sum())
