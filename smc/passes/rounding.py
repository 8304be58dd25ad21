"""Rounds rows to a codebook with two-level scales so that products with given inputs change least.

GPTQ's loop (Frantar et al. 2022, arXiv 2210.17323), which rounds each group with several scales and takes the best, and
then coordinate descent on codes and scales (Behdin et al. 2023, QuantEase, arXiv 2309.01885). Matrices are transposed
here, so that each column is contiguous.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.ir import EncodedTensor, Encoding

if TYPE_CHECKING:
    from torch import Tensor

CANDIDATES = 7
"""Scales that are tried for a group."""

SMALLEST = {2: 0.6, 3: 0.7, 4: 0.77, 5: 0.84, 6: 0.88}
"""The smallest of them, as a fraction of the one that covers the whole range, by the bits of a code."""

HEADROOM = 1.02
"""The largest scale that can be stored, as a multiple of a row's largest scale at the start: errors of earlier columns
make later groups wider."""

CHUNK_WEIGHTS = 1 << 21
"""The approximate number of weights that are rounded at once."""

COUPLED_BLOCKS = 16
"""Into how many interleaved parts the rows are cut in a two-sided sweep: those of one part move at once."""

OUTPUT_DAMPING = 0.3
"""What part of the mean square of all gradients is added to that of each output: their products are known from few
tokens, and a metric that follows them closely fits these."""

LEAST_OUTER = 2.0**-120
"""The scale of a row of zeros, whose codes of scales are 0."""


@dataclass(frozen=True)
class Metric:
    """The cost of an error e [columns] of a row: e·H·eᵀ, with H damped.

    moments: H, float32 [columns, columns]. root: the upper U with Uᵀ·U = H⁻¹.
    """

    moments: Tensor
    root: Tensor

    @staticmethod
    def of(moments: Tensor, damping: float) -> Metric:
        """moments: E[x·xᵀ], perhaps weighted; `damping` times its mean diagonal is added to the diagonal.

        Columns whose inputs are always 0 cost as much as the damping. InputError if H has no inverse.
        """
        import torch

        damped = moments.clone()
        mean = damped.diagonal().mean()
        damped.diagonal().add_(damping * mean if mean > 0 else 1.0)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if failed:
            raise InputError(f"the inputs depend on each other too much for a damping of {damping:g}")
        upper = lower.flip(0, 1).contiguous()
        root = torch.linalg.solve_triangular(upper, torch.eye(len(upper)), upper=True)
        return Metric(damped, root)


def round_matrix(
    target: Tensor,
    encoding: Encoding,
    metric: Metric,
    sweeps: int = 3,
    outputs: Tensor | None = None,
    coupled_sweeps: int = 0,
) -> EncodedTensor:
    """Codes and scales for float32 [rows, columns]; `sweeps` of coordinate descent follow GPTQ's.

    outputs: E[g·gᵀ] of the loss's gradients at the outputs, float32 [rows, rows]. `coupled_sweeps` more of coordinate
    descent then see what the errors of several rows do together: tr(G·E·H·Eᵀ) for errors E (after YAQA, Tseng et al.
    2025, arXiv 2505.22988).

    encoding: a codebook on the int8 grid, or integers with the middle as zero; scales of two levels, one super-group
    per row. The caller rotates: `target` and `metric` are in the basis of the stored columns.
    """
    import torch

    rows, columns = target.shape
    size, count = encoding.group_size(columns), encoding.groups(columns)
    whole_rows = encoding.scales.super_group is not None and encoding.scales.super_group >= count
    if not whole_rows or (encoding.constant_zero is None and not encoding.has_integer_codebook):
        raise InputError(
            f"{encoding} is neither a codebook nor integers with two-level scales and one super-group per row"
        )
    codes = torch.empty(rows, count, size, dtype=torch.uint8)
    scales, scale_codes = torch.empty(rows, 1), torch.empty(rows, count, dtype=torch.uint8)
    coupled = outputs is not None and coupled_sweeps > 0
    step = rows if coupled else max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        work = _Rows(target[part], encoding, metric)
        work.sweep()
        for _ in range(sweeps):
            work.descend()
        if outputs is not None and coupled_sweeps:
            work.descend_coupled(outputs, coupled_sweeps)
        codes[part], scales[part], scale_codes[part] = work.stored()
    return EncodedTensor(encoding, (rows, columns), codes=codes, scales=scales, scale_codes=scale_codes)


class _Rows:
    """Some rows while they are rounded: `values` [columns, rows] are the rounded weights so far."""

    def __init__(self, target: Tensor, encoding: Encoding, metric: Metric) -> None:
        import torch

        self.metric, self.levels = metric, Levels(encoding)
        rows, columns = target.shape
        self.size, self.count = encoding.group_size(columns), encoding.groups(columns)
        self.bits = encoding.bits
        self.target = target.T.contiguous()
        self.values = torch.zeros_like(self.target)
        padded = torch.nn.functional.pad(target, (0, self.count * self.size - columns))
        groups = padded.view(rows, self.count, self.size)
        widest = self.levels.covering(groups.amax(-1), groups.amin(-1))
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[encoding.scales.dtype]
        self.outer = (widest.amax(-1) * HEADROOM / 255).to(dtype).float()
        if (self.outer.eq(0) & (widest.amax(-1) > 0)).any():
            raise InputError(f"its weights are too small for two-level scales in {encoding.scales.dtype}")
        self.outer.clamp_(min=LEAST_OUTER)
        self.codes = torch.zeros(self.count, rows)  # of scales, whole numbers
        self.empty = (groups == 0).all(-1).T.contiguous()  # [n_groups, rows]

    def groups(self) -> list[tuple[int, slice]]:
        """Every group and its columns; the last group may be shorter."""
        columns = len(self.target)
        return [(b, slice(b * self.size, min((b + 1) * self.size, columns))) for b in range(self.count)]

    def scale_of(self, group: int) -> Tensor:
        """The scales of a group as they are stored, [rows]."""
        return self.outer * self.codes[group]

    def sweep(self) -> None:
        """Round column after column and spread errors over the later ones; choose a group's scale at its first
        column."""
        import torch

        left, root = self.target.clone(), self.metric.root
        fractions = torch.linspace(1.0, SMALLEST.get(self.bits, 0.95), CANDIDATES)[:, None]
        for group, span in self.groups():
            weights = left[span]
            widest = self.levels.covering(weights.amax(0), weights.amin(0))
            codes = (fractions * widest / self.outer).round_().clamp_(1, 255)
            codes.masked_fill_(self.empty[group], 0)
            errors, values, losses = self._tried(weights, self.outer * codes, root[span, span])
            best = losses.argmin(0, keepdim=True)
            self.codes[group] = codes.gather(0, best)[0]
            chosen = best.expand(len(weights), 1, -1)
            self.values[span] = values.gather(1, chosen)[:, 0]
            left[span.stop :].addmm_(root[span, span.stop :].T, errors.gather(1, chosen)[:, 0], alpha=-1)

    def _tried(self, weights: Tensor, scales: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A group rounded with every scale [candidates, rows]: errors over the root's diagonal and values
        [columns, candidates, rows], and the losses [candidates, rows]."""
        import torch

        rest = weights[:, None].expand(-1, len(scales), -1).contiguous()
        inverse = (1 / scales).masked_fill_(scales == 0, 0)
        errors, values = torch.empty_like(rest), torch.empty_like(rest)
        flat = rest.view(len(rest), -1)
        for column in range(len(rest)):
            value = torch.mul(self.levels.nearest(rest[column] * inverse), scales, out=values[column])
            error = torch.sub(rest[column], value, out=errors[column]).div_(float(root[column, column]))
            flat[column + 1 :].addr_(root[column, column + 1 :], error.view(-1), alpha=-1)
        return errors, values, errors.square().sum(0)

    def descend(self) -> None:
        """One sweep of coordinate descent: set every code, then the scale of every group, to the value with the least
        loss while all others are fixed."""
        import torch

        moments = self.metric.moments
        residual = moments @ (self.values - self.target)  # half the loss's gradient, [columns, rows]
        for group, span in self.groups():
            local, block, before = residual[span].clone(), moments[span, span], self.values[span].clone()
            scale = self.scale_of(group)
            inverse = (1 / scale).masked_fill_(scale == 0, 0)
            for column, place in enumerate(range(span.start, span.stop)):
                value = self.values[place]
                wanted = torch.sub(value, local[column], alpha=float(1 / block[column, column]))
                changed = self.levels.nearest(wanted.mul_(inverse)).mul_(scale)
                local.addr_(block[column], changed - value)
                self.values[place] = changed
            self._refit(group, span, local, block)
            residual.addmm_(moments[:, span], self.values[span] - before)

    def descend_coupled(self, outputs: Tensor, sweeps: int) -> None:
        """Sweeps that see what errors of several rows do together; what loses more than before is not kept.

        For one row i with the others as they are, tr(G·E·H·Eᵀ) is least where the row's own loss is least towards a
        target that is moved against the others' errors: by Σ g_ik·e_k / g_ii.
        """
        import torch

        damped = outputs.clone()
        damped.diagonal().add_((OUTPUT_DAMPING * damped.diagonal().mean()).clamp(min=1e-30))
        diagonal = damped.diagonal().clone()
        best, kept = self._coupled_loss(damped), (self.values.clone(), self.codes.clone())
        for _ in range(sweeps):
            for first in range(min(COUPLED_BLOCKS, len(damped))):
                rows = torch.arange(first, len(damped), COUPLED_BLOCKS)
                errors = self.values - self.target
                moved = self.target[:, rows] + errors[:, rows] - errors @ damped[:, rows] / diagonal[rows]
                part = self._part(rows, moved)
                part.descend()
                self.values[:, rows], self.codes[:, rows] = part.values, part.codes
            loss = self._coupled_loss(damped)
            if loss >= best:
                self.values, self.codes = kept
                return
            best, kept = loss, (self.values.clone(), self.codes.clone())

    def _coupled_loss(self, outputs: Tensor) -> float:
        errors = self.values - self.target
        return float(((self.metric.moments @ errors) * (errors @ outputs)).sum())

    def _part(self, rows: Tensor, target: Tensor) -> _Rows:
        """Some of the rows, towards another target [columns, rows]."""
        part = copy.copy(self)
        part.target = target
        part.values, part.codes = self.values[:, rows], self.codes[:, rows]
        part.outer, part.empty = self.outer[rows], self.empty[:, rows]
        return part

    def _refit(self, group: int, span: slice, local: Tensor, block: Tensor) -> None:
        """The best scale for the current codes, if it is better than the current scale."""
        scale = self.scale_of(group)
        levels = self.values[span] * (1 / scale).masked_fill_(scale == 0, 0)
        curvature = (levels * (block @ levels)).sum(0).clamp_(min=1e-30)
        slope = (levels * local).sum(0)
        codes = ((scale - slope / curvature) / self.outer).round_().clamp_(1, 255)
        codes.masked_fill_(self.empty[group], 0)
        change = self.outer * codes - scale
        worse = change * (change * curvature + 2 * slope) >= 0
        self.codes[group] = codes.where(~worse, self.codes[group])
        self.values[span] = levels * self.scale_of(group)

    def stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes uint8 [rows, n_groups, group], scales float32 [rows, 1] and their codes uint8 [rows, n_groups]."""
        import torch

        padded = torch.zeros(self.count * self.size, self.values.shape[1], dtype=torch.uint8)
        for group, span in self.groups():
            scale = self.scale_of(group)
            padded[span] = self.levels.codes(self.values[span] * (1 / scale).masked_fill_(scale == 0, 0))
        scales = self.outer.masked_fill(self.outer == LEAST_OUTER, 0)[:, None]
        return padded.T.reshape(-1, self.count, self.size), scales, self.codes.T.to(torch.uint8)


class Levels:
    """The values of codes before they are scaled: whole numbers, in ascending order."""

    def __init__(self, encoding: Encoding) -> None:
        """encoding: a codebook on the int8 grid, or integers with a constant zero."""
        import torch

        integers = range(1 << encoding.bits)
        entries = encoding.entries or tuple(code - (encoding.constant_zero or 0) for code in integers)
        self.entries = torch.tensor(sorted(map(float, entries)))
        self.low, self.high = float(self.entries[0]), float(self.entries[-1])
        order = {float(value): code for code, value in enumerate(entries)}
        # Middles of entries are halves of whole numbers, so twice a value, rounded up, says which entry is nearest; the
        # lower one where two are equally near.
        doubled = torch.arange(2 * int(self.low), 2 * int(self.high) + 1)
        middles = self.entries[1:] + self.entries[:-1]
        place = torch.bucketize(doubled.float(), middles)
        self._nearest = self.entries[place].contiguous()
        self._codes = torch.tensor([order[float(value)] for value in self.entries], dtype=torch.uint8)[place]

    def covering(self, high: Tensor, low: Tensor) -> Tensor:
        """The least scale with which the entries reach from `low` to `high`."""
        import torch

        return torch.maximum(high.clamp(min=0) / self.high, low.clamp(max=0) / self.low)

    def nearest(self, values: Tensor) -> Tensor:
        """The nearest entry for every value."""
        return self._nearest[self._place(values)]

    def codes(self, values: Tensor) -> Tensor:
        """The codes, uint8, of the entries nearest to these values."""
        return self._codes[self._place(values)]

    def _place(self, values: Tensor) -> Tensor:
        return (values * 2).ceil_().clamp_(2 * self.low, 2 * self.high).sub_(2 * self.low).int()
