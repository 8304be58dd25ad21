"""The pass `quantize-guided`: the least loss of the model under a budget of bits, with its gradients."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import ClassVar

from smc.errors import InputError
from smc.ir import Module
from smc.passes.base import Context, Need, Pass
from smc.passes.guided import GuidedWeights
from smc.passes.matrices import pick_matrices
from smc.passes.menu import WIDTHS
from smc.passes.registry import register


@register("quantize-guided")
@dataclass(frozen=True)
class QuantizeGuided(Pass):
    """Mixed precision under a budget: each matrix gets the width that costs the model least, and is rounded with
    gradients.

    bits: bits per weight of the whole model, embedding, head, norms, scales and padding included. widths: the bits of a
    code that may be chosen: 2 to 5 (a codebook), 6 and 8 (integers).
    The pass reads a calibration text (the one that comes with smc, or --calib FILE). Gradients of the loss on every
    third window say how much an error of each weight costs; a knapsack problem, solved exactly, gives the widths. GPTQ
    rounds the matrices, with second moments weighted by the gradients; it tries several scales per group. Coordinate
    descent on codes and scales follows.
    sequential: for how much of the error in a matrix's inputs its weights compensate (GPTAQ, arXiv 2504.02692), from 0
    to 1; 1 is too much for a short text. Each layer then runs again after the rounded ones before it; 0 is faster.
    sweeps: how many of coordinate descent, row by row. coupled_sweeps: how many more that see what the errors of
    several rows do together. damping: how much of the mean square of all inputs is added to that of each.
    rotate: patterns of matrices whose inputs are rotated at run time (Hadamard) in blocks of `block` columns, where
    these divide them: blocks of 32 cost nothing, others a step of their own.
    include, exclude: glob patterns on parameter names, slots and roles; the budget is always that of the whole model.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"torch", "calibration"})

    bits: float = 4.7
    widths: tuple[int, ...] = WIDTHS
    sequential: float = 0.25
    sweeps: int = 3
    coupled_sweeps: int = 2
    damping: float = 0.01
    rotate: tuple[str, ...] = ("down",)
    block: int = 32
    include: tuple[str, ...] = field(default=("*",), kw_only=True)
    exclude: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 32:
            raise InputError(f"bits of {self.name} must be from 1 to 32 bits per weight, not {self.bits:g}")
        for width in self.widths:
            if width not in WIDTHS:
                raise InputError(f"widths of {self.name} must be of {', '.join(map(str, WIDTHS))}, not {width}")
        if not self.widths or not 0 < self.damping <= 1 or not 0 <= self.sweeps <= 100:
            raise InputError(
                f"{self.name} needs one width or more, a damping above 0 and at most 1, and 0 to 100 sweeps"
            )
        if self.block < 2 or self.block & (self.block - 1):
            raise InputError(f"block of {self.name} must be a power of two, not {self.block}")
        if not 0 <= self.sequential <= 1:
            raise InputError(f"sequential of {self.name} must be from 0 to 1, not {self.sequential:g}")

    def run(self, module: Module, context: Context) -> Module:
        """Choose encodings and round; in a lazy context, round when a parameter is loaded."""
        picked = [
            p
            for p in pick_matrices(module, self.include, self.exclude)
            if p.encoding.is_float or p.load in context.requantize
        ]
        if not picked:
            context.report("0 matrices")
            return module
        rotated = {p.name for p in pick_matrices(module, self.rotate, ())} if self.rotate else set()
        weights = GuidedWeights(self, module, picked, rotated, context)
        encodings = weights.choose()
        if not context.lazy:
            weights.run()
        result = module.copy()
        for parameter in picked:
            name = parameter.name
            load = functools.partial(weights.load, name)
            result.parameters[name] = replace(
                parameter, encoding=encodings[name], load=load, costs=weights.costs[name]
            )
        widths = Counter(encoding.bits for encoding in encodings.values())
        shares = ", ".join(f"{count} of {bits} bits" for bits, count in sorted(widths.items()))
        context.report(f"{len(picked)} matrices: {shares}; expected KL divergence {weights.expected:.4f}")
        return result
