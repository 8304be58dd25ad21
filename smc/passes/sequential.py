"""`SequentialQuantizer`: rounds column after column; later columns compensate for the error of each.

The method is GPTQ (Frantar et al. 2022, arXiv 2210.17323), with one loop for all encodings.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from smc.errors import InputError
from smc.ir import Encoding
from smc.passes.statistics import GroupStatistics, Statistic
from smc.passes.weight_quantizer import NEGLIGIBLE, WeightQuantizer, last_code

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128
"""The number of columns whose errors are spread over the rest of the row in one product, as in the paper."""


@dataclass(frozen=True)
class SequentialQuantizer(WeightQuantizer):
    """Base of methods that round column after column; a subclass has the encoding and the scales of groups.

    Each weight gets the nearest code of the encoding: integers, stored zeros or offsets, a codebook, scales of two
    levels. The error of a column is spread over the later ones so that the products with the calibration text's inputs
    change least. A matrix without inputs is rounded to nearest.

    damping: how much of the mean square of all inputs is added to that of each. order: columns from the first to the
    last (natural), or those with the largest inputs first (importance).
    Scales are chosen at their group's first column, from weights that include the errors so far. With order importance
    and with two-level scales, all are chosen first.
    """

    statistics: ClassVar[frozenset[Statistic]] = frozenset({"second-moments"})

    damping: float = field(default=0.01, kw_only=True)
    order: Literal["natural", "importance"] = field(default="natural", kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise InputError(f"damping of {self.name} must be above 0 and at most 1, not {self.damping:g}")
        if self.encoding().scales.group == "tensor":
            raise InputError(f"{self.name} rounds rows column by column: its groups must not cross rows")

    @abstractmethod
    def scales(self, groups: Tensor, statistics: GroupStatistics) -> tuple[Tensor, ...]:
        """Scales [out, n_groups] of float32 groups [out, n_groups, group], and the zeros or offsets where the encoding
        stores them. They are rounded to their dtype afterwards. `groups` may be only some of a row's groups."""

    def quantize(self, groups: Tensor, statistics: GroupStatistics) -> tuple[Tensor, ...]:
        """Codes and scales, and zeros or offsets; see `WeightQuantizer.quantize`."""
        return _Sweep(self, groups, statistics).run()

    def stored(self, groups: Tensor, statistics: GroupStatistics) -> list[Tensor]:
        """`scales`, with zeros or offsets, as they will be stored."""
        encoding, chosen = self.encoding(), list(self.scales(groups, statistics))
        chosen[0] = self.round_scales(chosen[0])
        if encoding.stores_minima:
            chosen[1] = self._rounded(chosen[1])
        return chosen


class _Sweep:
    """The loop over the columns of some rows. Matrices are transposed here, so that each column is contiguous."""

    def __init__(self, method: SequentialQuantizer, groups: Tensor, statistics: GroupStatistics) -> None:
        import torch

        self.method, self.groups, self.statistics = method, groups, statistics
        self.rows, self.count, self.size = groups.shape
        self.table = _Table(method.encoding())
        columns = int(statistics.mask.sum())
        order, self.root = torch.arange(columns), None
        if statistics.inputs is not None:
            order, self.root = statistics.inputs.inverse_root(method.damping, method.order == "importance")
        self.order = order
        weights = groups.masked_fill(statistics.empty[..., None], 0).view(self.rows, -1)
        self.weights = weights.T[order].contiguous()
        self.codes = torch.zeros(self.count * self.size, self.rows)
        self.chosen: list[Tensor] = []  # scales and zeros or offsets, [n_groups, rows]
        self.chooses_first = method.order == "importance" or method.encoding().scales.super_group is not None

    def run(self) -> tuple[Tensor, ...]:
        """Codes [out, n_groups, group], scales [out, n_groups] and perhaps zeros or offsets."""
        import torch

        if self.chooses_first:
            self.chosen = [part.T.contiguous() for part in self.method.stored(self.groups, self.statistics)]
        for start, end in self._blocks():
            if not self.chooses_first and start % self.size == 0:
                self._choose(start // self.size)
            errors = torch.stack([self._round(column, end) for column in range(start, end)])
            if self.root is not None:
                self.weights[end:].addmm_(self.root[start:end, end:].T, errors, alpha=-1)
        codes = self.codes.T.reshape(self.rows, self.count, self.size)
        return codes, *(part.T for part in self.chosen)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Where batches of columns begin and end; a group whose scale is chosen in the loop begins one."""
        columns = len(self.weights)
        step = columns if self.chooses_first else self.size
        for group in range(0, columns, step):
            last = min(group + step, columns)
            yield from ((start, min(start + BLOCK, last)) for start in range(group, last, BLOCK))

    def _choose(self, group: int) -> None:
        """The scale of a group, from its current weights."""
        import torch

        rows = self.weights[group * self.size : (group + 1) * self.size].T
        padded = torch.nn.functional.pad(rows, (0, self.size - rows.shape[1])).view(self.rows, 1, self.size)
        empty = self.statistics.empty[:, group] | (padded.abs().amax((1, 2)) < NEGLIGIBLE)
        filled = padded.masked_fill(empty[:, None, None], 1)
        found = self.method.stored(filled, self.statistics.part(slice(group, group + 1)))
        if not self.chosen:
            self.chosen = [torch.zeros(self.count, self.rows) for _ in found]
        for part, values in zip(self.chosen, found, strict=True):
            part[group] = values[:, 0]

    def _round(self, column: int, end: int) -> Tensor:
        """Round a column and spread its error over the rest of the batch; returns the error over the root's
        diagonal."""
        place = int(self.order[column])
        group = place // self.size
        parts = [part[group] for part in self.chosen]
        weights = self.weights[column]
        codes = self.table.nearest(weights, *parts)
        self.codes[place] = codes
        error = weights - self.table.decode(codes, *parts).masked_fill(self.statistics.empty[:, group], 0)
        if self.root is not None:
            error /= self.root[column, column]
            self.weights[column + 1 : end].addr_(self.root[column, column + 1 : end], error, alpha=-1)
        return error


class _Table:
    """The nearest codes of an encoding of any kind, and the values of codes."""

    def __init__(self, encoding: Encoding) -> None:
        import torch

        self.encoding, self.last = encoding, last_code(encoding)
        self.entries = None
        if encoding.has_codebook:
            self.entries = torch.tensor(encoding.entries, dtype=torch.float32)
            ordered, self.codes = self.entries.sort()
            self.middles = (ordered[1:] + ordered[:-1]) / 2

    def nearest(self, values: Tensor, scales: Tensor, third: Tensor | None = None) -> Tensor:
        """Codes, whole numbers as float32, of values [out] under scales and zeros or offsets [out]."""
        import torch

        if self.encoding.stores_minima and third is not None:
            values = values - third
        inverse = (1 / scales).masked_fill_(scales == 0, 0)
        if self.entries is not None:
            return self.codes[torch.bucketize(values * inverse, self.middles)].float()
        return (values * inverse).round_().add_(self._zero(third)).clamp_(0, self.last)

    def decode(self, codes: Tensor, scales: Tensor, third: Tensor | None = None) -> Tensor:
        """The values, float32 [out], as `EncodedTensor.decode` has them."""
        if self.entries is not None:
            return scales * self.entries[codes.int()]
        values = scales * (codes - self._zero(third))
        return values + third if self.encoding.stores_minima and third is not None else values

    def _zero(self, third: Tensor | None) -> Tensor | int:
        if self.encoding.stores_zeros:
            assert third is not None
            return third
        return self.encoding.constant_zero or 0
