"""A module as a torch module that can be trained, with the reference's arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smc.ir import Module, Node
from smc.reference import Batch, Reference
from smc.training.attention import AttentionInputs
from smc.training.weights import Leaf


class Program(nn.Module):
    """`main` of a module, call by call; each call is a torch module of its own, which FSDP can shard."""

    def __init__(self, module: Module, leaves: Mapping[str, Leaf], checkpointing: bool = False) -> None:
        """leaves: for every parameter, what computes its weight. checkpointing: the backward pass computes layers
        again."""
        super().__init__()
        self.module, self.checkpointing = module, checkpointing
        self.references = Reference(module, keep_weights=False), Reference(module, keep_weights=False, gradients=True)
        self.shared = {name for name in module.parameters if len(module.uses(name)) > 1}
        self.named = dict(leaves)
        self.common = nn.ModuleList(leaves[name] for name in sorted(self.shared))
        self.parts = nn.ModuleList(_Part(self, call) for call, _ in module.calls())
        self.layers = {call.name for call in module.layer_calls()}

    def forward(
        self, batch: Batch, tapped: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """Every value of `main` by name; with gradients if torch records them.

        Also q and k of the calls in `tapped`, as their attention reads them.
        """
        attended: dict[str, tuple[Tensor, Tensor]] = {}
        values = self.references[0].inputs(batch)
        common = {name: self.named[name]() for name in sorted(self.shared)}
        for (call, _), part in zip(self.module.calls(), self.parts, strict=True):
            inputs = [values[name] for name in call.inputs]
            arguments = (inputs, batch.lengths, common, call.name in tapped)
            if self.checkpointing and call.name in self.layers and torch.is_grad_enabled():
                values[call.name], *seen = checkpoint(part, *arguments, use_reentrant=False)
            else:
                values[call.name], *seen = part(*arguments)
            if seen:
                attended[call.name] = (seen[0], seen[1])
        return values, attended


class _Part(nn.Module):
    """One call."""

    def __init__(self, program: Program, call: Node) -> None:
        super().__init__()
        self.call, self.references = call, program.references
        slots: Mapping[str, str] = call.attributes["parameters"]
        self.own = {slot: name for slot, name in slots.items() if name not in program.shared}
        self.others = {slot: name for slot, name in slots.items() if name in program.shared}
        self.leaves = nn.ModuleList(program.named[name] for name in self.own.values())

    def forward(
        self, inputs: list[Tensor], lengths: tuple[int, ...], common: Mapping[str, Any], tapped: bool
    ) -> tuple[Tensor, ...]:
        """The call's result, float32 [n, columns]; when it is tapped also q and k of its attention."""
        weights = {slot: leaf() for slot, leaf in zip(self.own, self.leaves, strict=True)}
        weights |= {slot: common[name] for slot, name in self.others.items()}
        reference = self.references[torch.is_grad_enabled()]
        hook = AttentionInputs({self.call.name} if tapped else ())
        result = reference.call(self.call, inputs, lengths, hook, weights)
        return result, *hook.found.get(self.call.name, ())
