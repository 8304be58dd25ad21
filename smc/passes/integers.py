"""`IntegerQuantizer`: the options and the scale search of methods that store integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from smc.errors import InputError
from smc.ir import Encoding
from smc.passes.weight_quantizer import WeightQuantizer

if TYPE_CHECKING:
    from torch import Tensor

LEAST_SQUARES = 1e-30
"""If all codes that count are 0, so are the products: any divisor will do."""

GROUPS = (16, 32, 64, 128, "row")


def check_group(name: str, group: int | str) -> None:
    """Raise InputError if a pass does not support this group."""
    if group not in GROUPS:
        raise InputError(f"{name} takes groups of {', '.join(map(str, GROUPS))}, not {group}")


@dataclass(frozen=True)
class IntegerQuantizer(WeightQuantizer):
    """Base of methods that store integers with a scale per group, and perhaps a zero; QuantizeRTN explains the options.

    A method rounds to the scales and zeros of `grid`.
    """

    bits: int = 4
    group: int | Literal["row"] = 32
    symmetric: bool = True
    search: int = 3
    scale_dtype: Literal["f16", "bf16", "f32"] = "f16"
    activation: Literal["i8", "none"] = "i8"
    super_group: int | None = None
    activation_group: Literal[32, 64, 128, "token"] = 32

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InputError(f"{self.name} takes 2 to 8 bits, not {self.bits}")
        if self.search < 0:
            raise InputError(f"search of {self.name} must be a number of steps, 0 or more, not {self.search}")
        check_group(self.name, self.group)
        if self.super_group is not None and (self.super_group < 2 or not isinstance(self.group, int)):
            raise InputError(f"super_group of {self.name} must be none, or 2 or more with groups of columns")

    def encoding(self) -> Encoding:
        """Packed integers, a scale and perhaps a zero for every group."""
        return Encoding.of(
            bits=self.bits,
            zero=None if self.symmetric else "stored",
            group=self.group,
            scale_dtype=self.scale_dtype,
            super_group=self.super_group,
            activation=self.activation,
            activation_group=self.activation_group,
        )

    def grid(self, groups: Tensor, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scales and zeros, float32 [out, n_groups], with the least squared error among the candidates of `search`.

        importance: float32 [n_groups, group], the weight of each squared error; None: all count alike.
        """
        top = (1 << self.bits) - 1
        signed = self.super_group is None
        candidate = (
            _symmetric_candidates(groups, top, signed) if self.symmetric else _asymmetric_candidates(groups, top)
        )
        if self.search == 0:
            inverse, zeros = candidate(0.0)
            return 1 / inverse, zeros
        best = _Best(groups, top, importance)
        for stretch in _stretches(self.search):
            best.offer(*candidate(stretch))
        return best.scales, best.zeros


def _stretches(search: int) -> list[float]:
    """The stretches of a group's range, in codes: 0, and `search` steps down to -1 and up to 1 (clipping)."""
    return [0.0, *(sign * step / search for step in range(1, search + 1) for sign in (-1, 1))]


Candidates = Callable[[float], "tuple[Tensor, Tensor]"]
"""From a stretch to 1 / scale and zero of every group, both float32 [out, n_groups]."""


def _symmetric_candidates(groups: Tensor, top: int, signed: bool) -> Candidates:
    """The zero is the middle code. There is one more code below it than above, and the scale takes the sign that gives
    it to the largest weight; scales that have no sign fit the range half a code wider than the codes above."""
    import torch

    middle = (top + 1) // 2
    low, high = groups.amin(-1), groups.amax(-1)
    if not signed:
        largest = torch.maximum(-low, high)
        return lambda stretch: ((middle - 0.5 + stretch) / largest, torch.full_like(low, middle))
    largest = torch.where(-low > high, low, high)
    zeros = torch.full_like(low, middle)
    return lambda stretch: (-(middle + stretch) / largest, zeros)


def _asymmetric_candidates(groups: Tensor, top: int) -> Candidates:
    """The range reaches from the smallest to the largest weight and includes 0."""
    low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)

    def candidate(stretch: float) -> tuple[Tensor, Tensor]:
        inverse = (top + stretch) / (high - low)
        return inverse, (-low * inverse).round_().clamp_(0, top)

    return candidate


class _Best:
    """The best scale and zero of every group among the candidates offered.

    For codes q (counted from the zero) of weights w the scale with the least squared error is Σwq / Σq², and the error
    left is Σw² - (Σwq)² / Σq²: so the candidate with the largest (Σwq)² / Σq² wins, and its scale is the refitted one.
    With importance h the sums are Σhwq and Σhq².
    """

    def __init__(self, groups: Tensor, top: int, importance: Tensor | None) -> None:
        import torch

        self.groups, self.top = groups, top
        self.importance = importance
        self._weighted = groups if importance is None else groups * importance
        self.gain = torch.full(groups.shape[:-1], -1.0)
        self.scales = torch.zeros_like(self.gain)
        self.zeros = torch.zeros_like(self.gain)
        self._codes, self._products = torch.empty_like(groups), torch.empty_like(groups)

    def offer(self, inverse: Tensor, zeros: Tensor) -> None:
        """Round with these and keep them for groups without a better candidate so far."""
        import torch

        codes = torch.mul(self.groups, inverse[..., None], out=self._codes).round_()
        codes.clamp_(-zeros[..., None], (self.top - zeros)[..., None])
        dots = torch.mul(codes, self._weighted, out=self._products).sum(-1)
        squares = codes.square_()
        if self.importance is None:
            squares = squares.sum(-1).clamp_(min=1)
        else:
            squares = squares.mul_(self.importance).sum(-1).clamp_(min=LEAST_SQUARES)
        scales = dots / squares
        better = scales * dots > self.gain
        self.gain = torch.where(better, scales * dots, self.gain)
        self.scales = torch.where(better, scales, self.scales)
        self.zeros = torch.where(better, zeros, self.zeros)
