"""The pass `up-scale`: a deeper model from two overlapping copies of a shallower one."""

from __future__ import annotations

from dataclasses import dataclass

from smc.errors import InputError
from smc.ir import Module
from smc.passes.base import Context, Pass
from smc.passes.layers import arranged, ranges
from smc.passes.registry import register


@register("up-scale")
@dataclass(frozen=True)
class UpScale(Pass):
    """Depth up-scaling as in SOLAR (arXiv 2312.15166): the model twice, one copy behind the other.

    remove: the last so many layers of the first copy and the first so many of the second are left out, so n layers
    become 2 · (n - remove): SOLAR makes 48 of 32 with 8. Train it afterwards. map-layers makes any other depth.
    """

    remove: int = 8

    def run(self, module: Module, context: Context) -> Module:
        """Arrange the layers."""
        count = len(module.layer_calls())
        if not 0 <= self.remove < count:
            raise InputError(f"{self.name} removes 0 to {count - 1} layers of each copy, not {self.remove}")
        picks = [*range(count - self.remove), *range(self.remove, count)]
        context.report(f"{count} → {len(picks)} layers: {ranges(picks)}")
        return arranged(module, picks)
