"""The passes `map-layers` and `drop-layers`: layers that the user names."""

from __future__ import annotations

from dataclasses import dataclass

from smc.errors import InputError
from smc.ir import Module
from smc.passes.base import Context, Pass
from smc.passes.layers import arranged, parse_layers, ranges
from smc.passes.registry import register


@register("map-layers")
@dataclass(frozen=True)
class MapLayers(Pass):
    """Arrange these layers of the model in this order; a layer may occur several times.

    layers: numbers and ranges with both ends, joined by +: 0-20+9-29 makes 42 layers from 30. Copies have weights of
    their own, which training can change separately.
    """

    layers: tuple[str, ...]

    def run(self, module: Module, context: Context) -> Module:
        """Rearrange the calls of `main`."""
        picks = parse_layers(self.layers, len(module.layer_calls()), self.name)
        if not picks:
            raise InputError(f"{self.name} would leave no layer: name at least one, such as layers=0-20+9-29")
        context.report(f"{len(module.layer_calls())} → {len(picks)} layers: {ranges(picks)}")
        return arranged(module, picks)


@register("drop-layers")
@dataclass(frozen=True)
class DropLayers(Pass):
    """Leave out these layers.

    layers: numbers and ranges with both ends, joined by +: 12-15+17+25. The pass prune-depth finds out which layers to
    drop.
    """

    layers: tuple[str, ...]

    def run(self, module: Module, context: Context) -> Module:
        """Keep the other calls."""
        count = len(module.layer_calls())
        dropped = set(parse_layers(self.layers, count, self.name))
        kept = [layer for layer in range(count) if layer not in dropped]
        if not kept:
            raise InputError(f"{self.name} would leave no layer of {count}: keep at least one")
        context.report(f"dropped {ranges(sorted(dropped)) or 'none'} of {count} layers")
        return arranged(module, kept)
