"""The pass `expand-blocks`: new layers that change no result until they are trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from smc.errors import InputError
from smc.ir import EncodedTensor, Module, Parameter, encode_float
from smc.passes.base import Context, Pass
from smc.passes.layers import arranged
from smc.passes.registry import register

ENDS = ("output", "down")
"""Roles of the matrices that compute what a layer adds to its input."""


@register("expand-blocks")
@dataclass(frozen=True)
class ExpandBlocks(Pass):
    """Block expansion as in LLaMA-Pro (arXiv 2401.02415): copies of layers that pass on their input, exactly.

    A copy follows every `every`th layer; the matrices that end its attention and its feed-forward are zero, so the
    model computes the same until it is trained. As in the paper, train the copies only; the report has their names.
    """

    every: int = 4

    def run(self, module: Module, context: Context) -> Module:
        """Copy layers, then set what the copies add to zero."""
        count = len(module.layer_calls())
        if not 1 <= self.every <= count:
            raise InputError(f"{self.name}: every must be from 1 to {count}, not {self.every}")
        picks = [place for layer in range(count) for place in [layer] * (2 if (layer + 1) % self.every == 0 else 1)]
        result = arranged(module, picks)
        copies = [place for place, pick in enumerate(picks) if place and picks[place - 1] == pick]
        calls = result.layer_calls()
        for place in copies:
            for name in _written_by_ends(result, calls[place].name):
                result.parameters[name] = _zero(result.parameters[name])
        context.report(f"{count} → {len(picks)} layers; new: {'+'.join(f'*.{place}.*' for place in copies)}")
        return result


def _written_by_ends(module: Module, name: str) -> list[str]:
    """The matrices of a layer that end its parts, and their biases."""
    call = module.main.node(name)
    function, found = module.functions[call.attributes["function"]], []
    for node in function.nodes():
        if node.op in ("linear", "grouped_linear"):
            weight, bias = node.inputs[1], node.argument("bias") if node.op == "linear" else None
            if function.node(weight).attributes["role"] in ENDS:
                found += [weight] if bias is None else [weight, bias]
    return [call.attributes["parameters"][slot] for slot in found]


def _zero(parameter: Parameter) -> Parameter:
    import torch

    if not parameter.encoding.is_float:
        raise InputError(f"{parameter.name} is quantized: expand the blocks first, then quantize")

    def load() -> EncodedTensor:
        return encode_float(torch.zeros(parameter.shape), parameter.encoding)

    return replace(parameter, load=load)
