"""Statistics of the inputs of a matrix: which ones a quantizer may request, and how they are computed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from smc.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Statistic = Literal["second-moments", "maxima", "means", "magnitudes"]


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of the inputs x of a matrix over all calibration tokens; those that were not requested are None.

    tokens: how many. second_moments: E[x·xᵀ], float32 [columns, columns]. maxima: max |x|, float32 [columns].
    means: E[x], float32 [columns]. magnitudes: E[|x|], float32 [columns].
    Matrices with the same inputs (q, k and v) have the same object, and share `inverse_root` in it.
    """

    tokens: int
    second_moments: Tensor | None = None
    maxima: Tensor | None = None
    means: Tensor | None = None
    magnitudes: Tensor | None = None
    _roots: dict[object, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def inverse_root(self, damping: float, by_importance: bool) -> tuple[Tensor, Tensor]:
        """The order of columns, int64 [columns], and the upper U with Uᵀ·U = H⁻¹ in that order, [columns, columns].

        H are the second moments, with `damping` times their mean diagonal added to the diagonal. by_importance: columns
        with larger moments first. InputError if H has no inverse in float32.
        """
        key = (damping, by_importance)
        if key not in self._roots:
            assert self.second_moments is not None
            self._roots[key] = _inverse_root(self.second_moments, damping, by_importance)
        return self._roots[key]


@dataclass(frozen=True)
class GroupStatistics:
    """Facts about the groups that `quantize` gets.

    mask: bool [n_groups, group], false if a group is padded beyond the end of the rows.
    empty: bool [out, n_groups], true where a group is all zero: `quantize` gets ones, and scale 0 is stored.
    inputs: the statistics of the matrix's inputs that the method requests (`WeightQuantizer.statistics`); None if it
    requests none, and for a matrix without inputs (an embedding of its own).
    first: the index in the row of the first group: 0 unless a method gets only some of them.
    """

    mask: Tensor
    empty: Tensor
    inputs: InputStatistics | None = None
    first: int = 0

    def grouped(self, values: Tensor) -> Tensor:
        """A statistic of columns, [columns], in the shape of the groups: [n_groups, group], zeros in the padding."""
        import torch

        count, size = self.mask.shape
        part = values[self.first * size : (self.first + count) * size]
        return torch.nn.functional.pad(part, (0, count * size - len(part))).view(count, size)

    def part(self, groups: slice) -> GroupStatistics:
        """The same for some of the groups."""
        return GroupStatistics(self.mask[groups], self.empty[:, groups], self.inputs, self.first + groups.start)


class Accumulator:
    """Computes `InputStatistics`, some tokens at a time."""

    def __init__(self, wanted: Collection[Statistic], columns: int) -> None:
        """Start without tokens."""
        import torch

        self.tokens = 0
        self._products = torch.zeros(columns, columns) if "second-moments" in wanted else None
        self._maxima = torch.zeros(columns) if "maxima" in wanted else None
        self._sums = torch.zeros(columns) if "means" in wanted else None
        self._sizes = torch.zeros(columns) if "magnitudes" in wanted else None

    def add(self, x: Tensor) -> None:
        """Add inputs, float32 [tokens, columns]."""
        import torch

        self.tokens += len(x)
        if self._products is not None:
            self._products.addmm_(x.T, x)
        if self._maxima is not None:
            torch.maximum(self._maxima, x.abs().amax(0), out=self._maxima)
        if self._sums is not None:
            self._sums.add_(x.sum(0))
        if self._sizes is not None:
            self._sizes.add_(x.abs().sum(0))

    def result(self, what: str) -> InputStatistics:
        """The statistics; nothing can be added afterwards. InputError, which names `what`, if they are not finite."""
        for gathered in (self._products, self._maxima, self._sums, self._sizes):
            if gathered is not None and not gathered.isfinite().all():
                raise InputError(f"the inputs of {what} are not finite on the calibration text: is the model broken?")
        return InputStatistics(
            self.tokens,
            None if self._products is None else self._products.div_(self.tokens),
            self._maxima,
            None if self._sums is None else self._sums.div_(self.tokens),
            None if self._sizes is None else self._sizes.div_(self.tokens),
        )


def _inverse_root(moments: Tensor, damping: float, by_importance: bool) -> tuple[Tensor, Tensor]:
    """The Cholesky factor of H with its columns reversed, reversed back, is an upper M with M·Mᵀ = H; U is its inverse.
    That saves inverting H and a second factorization."""
    import torch

    diagonal = moments.diagonal()
    order = diagonal.argsort(descending=True, stable=True) if by_importance else torch.arange(len(moments))
    turned = order.flip(0)
    matrix = moments[turned][:, turned]
    # A column whose inputs are always 0 gets no errors of others; 1 keeps the matrix regular.
    dead = (diagonal <= 0)[turned]
    matrix.diagonal()[dead] = 1
    matrix.diagonal().add_(damping * diagonal.mean())
    lower, failed = torch.linalg.cholesky_ex(matrix)
    del matrix
    if failed:
        raise InputError(f"the inputs depend on each other too much for a damping of {damping:g}: choose a larger one")
    upper = lower.flip(0, 1).contiguous()
    del lower
    identity = torch.eye(len(upper))
    return order, torch.linalg.solve_triangular(upper, identity, upper=True, out=identity)
