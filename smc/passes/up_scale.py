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
    """Depth up-scaling as in SOLAR (arXiv 2312.15166): two copies of the layers, one after the other.

    remove: how many layers the first copy loses at its end, and the second at its beginning: n layers become 2 · (n -
    remove). SOLAR makes 48 from 32 with 8. Train the model afterwards. The pass map-layers makes any other depth.
    """

    remove: int = 8

    def run(self, module: Module, context: Context) -> Module:
        """Rearrange the layers."""
        count = len(module.layer_calls())
        if not 0 <= self.remove < count:
            raise InputError(f"remove of {self.name} must be from 0 to {count - 1}, not {self.remove}")
        picks = [*range(count - self.remove), *range(self.remove, count)]
        context.report(f"{count} → {len(picks)} layers: {ranges(picks)}")
        return arranged(module, picks)
