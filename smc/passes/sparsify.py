"""The passes `sparsify-…`: set weights that matter little to 0."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from smc.errors import InputError
from smc.ir import EncodedTensor, Module, Parameter, encode_float
from smc.passes.base import Context, Need, Pass
from smc.passes.calibration import loads_of
from smc.passes.matrices import pick_matrices
from smc.passes.registry import register
from smc.passes.statistics import InputStatistics, Statistic

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128
"""The number of columns whose weights SparseGPT compares together, and whose errors it then spreads over the rest of
the row."""


@dataclass(frozen=True)
class Sparsify(Pass):
    """Base of the passes that set weights to 0. sparsity: the share of a matrix's weights that become 0.

    pattern: any, or 2:4 (2 of 4 neighbouring columns become 0; sparsity must be 0.5 then). include, exclude: glob
    patterns on parameter names, slots and roles (v_proj, value). Matrices stay dense floats with zeros in them, as
    large and as fast as before.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"torch"})
    statistics: ClassVar[frozenset[Statistic]] = frozenset()

    sparsity: float = 0.5
    pattern: Literal["any", "2:4"] = "any"
    include: tuple[str, ...] = field(default=("*",), kw_only=True)
    exclude: tuple[str, ...] = field(default=("embedding", "head"), kw_only=True)

    def __init_subclass__(cls) -> None:
        """A calibration text, for passes with statistics."""
        super().__init_subclass__()
        if cls.statistics:
            cls.needs = cls.needs | {"calibration"}

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise InputError(f"sparsity of {self.name} must be above 0 and below 1, not {self.sparsity:g}")
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise InputError(f"sparsity of {self.name} with the pattern 2:4 must be 0.5, not {self.sparsity:g}")

    def run(self, module: Module, context: Context) -> Module:
        """Wrap the `load` of every selected parameter."""
        result = module.copy()
        changed = pick_matrices(module, self.include, self.exclude)
        for parameter in changed:
            if not parameter.encoding.is_float:
                raise InputError(f"{parameter.name} is quantized: set weights to 0 first, then quantize")
            if self.pattern == "2:4" and parameter.shape[-1] % 4:
                raise InputError(
                    f"{parameter.name} has {parameter.shape[-1]} columns, not a multiple of 4: leave it out with "
                    "exclude"
                )
        loads = loads_of(self, module, changed, context)
        for parameter in changed:
            result.parameters[parameter.name] = replace(parameter, load=loads[parameter.name])
        share = "2 of 4" if self.pattern == "2:4" else f"{100 * self.sparsity:g} %"
        context.report(f"{share} of the weights of {len(changed)} matrices are 0, stored and run dense")
        return result

    def encode_parameter(self, parameter: Parameter, inputs: InputStatistics | None = None) -> EncodedTensor:
        """The parameter with zeros, in its float encoding."""
        values = parameter.values()
        matrix = values.reshape(-1, values.shape[-1])
        return encode_float(self.prune(matrix, inputs).view(parameter.shape), parameter.encoding)

    def prune(self, weights: Tensor, inputs: InputStatistics | None) -> Tensor:
        """The matrix with zeros, float32 [out, in]. inputs: None without statistics or inputs."""
        raise NotImplementedError

    def lowest(self, scores: Tensor, *, per_row: bool) -> Tensor:
        """The weights to drop, bool [out, in] like scores: those with the smallest scores of a row, or of the
        matrix."""
        import torch

        if self.pattern == "2:4":
            fours = scores.reshape(-1, 4)
            places = fours.argsort(dim=-1, stable=True)[:, :2]
            return torch.zeros_like(fours, dtype=torch.bool).scatter_(1, places, True).view(scores.shape)
        rows = scores if per_row else scores.reshape(1, -1)
        places = rows.argsort(dim=-1, stable=True)[:, : int(rows.shape[1] * self.sparsity)]
        return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, places, True).view(scores.shape)


@register("sparsify-magnitude")
@dataclass(frozen=True)
class SparsifyMagnitude(Sparsify):
    """Set the smallest weights of each matrix to 0 (Han et al., arXiv 1506.02626); no calibration.

    sparsity: the share that becomes 0. pattern: any, or 2:4 (2 of 4 neighbouring columns). include, exclude: glob
    patterns on parameter names, slots and roles (v_proj, value). Matrices stay dense, with zeros in them.
    """

    def prune(self, weights: Tensor, inputs: InputStatistics | None) -> Tensor:
        """Drop by |w|, over the whole matrix."""
        return weights.masked_fill(self.lowest(weights.abs(), per_row=False), 0)


@register("sparsify-wanda")
@dataclass(frozen=True)
class SparsifyWanda(Sparsify):
    """Set the weights with the least |weight| · ‖input‖ of each row to 0, as Wanda does (arXiv 2306.11695).

    The norm is that of the weight's column of inputs over a calibration text (--calib FILE), layer after layer, each
    after the pruned layers before it. sparsity: the share that becomes 0. pattern: any, or 2:4 (2 of 4 neighbouring
    columns). include, exclude: glob patterns on parameter names, slots and roles. Matrices stay dense, with zeros.
    """

    statistics: ClassVar[frozenset[Statistic]] = frozenset({"second-moments"})

    def prune(self, weights: Tensor, inputs: InputStatistics | None) -> Tensor:
        """Drop by |weight| · ‖input‖, row by row."""
        scores = weights.abs()
        if inputs is not None:
            assert inputs.second_moments is not None
            scores = scores * inputs.second_moments.diagonal().sqrt()
        return weights.masked_fill(self.lowest(scores, per_row=True), 0)


@register("sparsify-sparsegpt")
@dataclass(frozen=True)
class SparsifySparseGPT(Sparsify):
    """Set weights to 0 and let the others of the row compensate, as SparseGPT does (arXiv 2301.00774).

    Columns are processed one after the other; w² / [H⁻¹]² says how much a weight matters, where H has the second
    moments of the inputs on a calibration text (--calib FILE). damping: how much of their mean is added to each.
    sparsity: the share that becomes 0. pattern: any, or 2:4 (2 of 4 neighbouring columns). include, exclude: glob
    patterns on parameter names, slots and roles. Matrices stay dense, with zeros.
    """

    statistics: ClassVar[frozenset[Statistic]] = frozenset({"second-moments"})

    damping: float = field(default=0.01, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damping <= 1:
            raise InputError(f"damping of {self.name} must be above 0 and at most 1, not {self.damping:g}")

    def prune(self, weights: Tensor, inputs: InputStatistics | None) -> Tensor:
        """Batch after batch of columns; the weights to drop are chosen at its beginning, or every 4 columns."""
        import torch

        if inputs is None:
            return weights.masked_fill(self.lowest(weights.abs(), per_row=False), 0)
        _, root = inputs.inverse_root(self.damping, by_importance=False)
        result, columns = weights.clone(), weights.shape[1]
        for start in range(0, columns, BLOCK):
            end = min(start + BLOCK, columns)
            step = 4 if self.pattern == "2:4" else end - start
            errors = torch.zeros(len(weights), end - start)
            for column in range(start, end):
                if (column - start) % step == 0:
                    chosen = slice(column, column + step)
                    drop = self.lowest((result[:, chosen] / root.diagonal()[chosen]).square(), per_row=False)
                dropped = drop[:, (column - start) % step]
                error = result[:, column].masked_fill(~dropped, 0) / root[column, column]
                result[:, column:end] -= error[:, None] * root[column, column:end]
                result[:, column].masked_fill_(dropped, 0)
                errors[:, column - start] = error
            result[:, end:] -= errors @ root[start:end, end:]
        return result
