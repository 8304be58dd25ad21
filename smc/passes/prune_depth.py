"""The pass `prune-depth`: leaves out the layers that change their input least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from smc.errors import InputError
from smc.ir import Module
from smc.passes.base import Context, Need, Pass
from smc.passes.layers import arranged, ranges
from smc.passes.registry import register

if TYPE_CHECKING:
    from smc.passes.calibration import Calibration


@register("prune-depth")
@dataclass(frozen=True)
class PruneDepth(Pass):
    """Leave out the layers with the least block influence, as ShortGPT does (arXiv 2403.03853). Needs --calib FILE.

    The influence of a layer is 1 - cos(x, y) of its input x and its result y, averaged over the calibration text's
    tokens. layers: how many to leave out. one_by_one: measure again after each (slower; the paper measures once). The
    pass drop-layers leaves out layers by number.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"torch", "calibration"})

    layers: int
    one_by_one: bool = False

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise InputError(f"layers of {self.name} must be 1 or more, not {self.layers}")

    def run(self, module: Module, context: Context) -> Module:
        """Measure the layers, and leave out those with the least influence."""
        count = len(module.layer_calls())
        if self.layers >= count:
            raise InputError(f"{self.name} can't leave out {self.layers} of {count} layers: keep at least one")
        if context.calibration is None:
            raise InputError(f"pass {self.name} needs a calibration text: give one with --calib FILE")
        result, kept, dropped, told = module, list(range(count)), [], []
        for step in range(self.layers if self.one_by_one else 1):
            influences = block_influence(result, context.calibration)
            order = sorted(range(len(kept)), key=influences.__getitem__)
            out = sorted(order[: 1 if self.one_by_one else self.layers])
            dropped += [kept[place] for place in out]
            told += [influences[place] for place in out]
            result = arranged(result, [place for place in range(len(kept)) if place not in out])
            kept = [layer for place, layer in enumerate(kept) if place not in out]
            context.progress((step + 1) / (self.layers if self.one_by_one else 1))
        least, most = min(told), max(told)
        context.report(f"dropped {ranges(sorted(dropped))} of {count} layers, influence {least:.3f} to {most:.3f}")
        return result


def block_influence(module: Module, calibration: Calibration) -> list[float]:
    """The block influence of every layer: 1 - the mean cosine of its input and its output over all tokens."""
    import torch

    runner, layers, found = calibration.runner(module), {c.name for c in module.layer_calls()}, []
    for call, _ in module.calls():
        before = runner.values(call.inputs[0]) if call.name in layers else []
        runner.advance(call)
        if call.name in layers:
            after = runner.values(call.name)
            cosines = [torch.cosine_similarity(x, y, dim=-1) for x, y in zip(before, after, strict=True)]
            found.append(1 - torch.cat(cosines).double().mean().item())
            if len(found) == len(layers):
                break
    return found
