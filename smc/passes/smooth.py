"""The pass `smooth`: SmoothQuant, which moves outliers of inputs into the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from smc.errors import InputError
from smc.passes.equalize import Equalizer
from smc.passes.registry import register
from smc.passes.statistics import InputStatistics, Statistic

if TYPE_CHECKING:
    from torch import Tensor


@register("smooth")
@dataclass(frozen=True)
class Smooth(Equalizer):
    """SmoothQuant (arXiv 2211.10438): divide the inputs of matrices by factors, and multiply the columns by them.

    The factor of a column is (largest input)^alpha / (largest weight)^(1 - alpha): then rounding inputs to int8 loses
    less if few columns are large. The pass changes no result by itself: put it before a quantizer. It scales inputs
    that a norm computes (those of q, k, v, gate and up) and reads a calibration text.
    alpha: 0 to 1, how much of the difficulty moves from the inputs to the weights.
    """

    statistics: ClassVar[frozenset[Statistic]] = frozenset({"maxima"})

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha of {self.name} must be from 0 to 1, not {self.alpha:g}")

    def factors(self, matrices: Sequence[Tensor], inputs: InputStatistics) -> Tensor:
        """The factors of equation 4 of the paper; a column without inputs or weights has 1."""
        import torch

        assert inputs.maxima is not None
        weights = torch.stack([matrix.abs().amax(0) for matrix in matrices]).amax(0)
        factors = inputs.maxima**self.alpha / weights ** (1 - self.alpha)
        return factors.where((inputs.maxima > 0) & (weights > 0), torch.ones(()))
