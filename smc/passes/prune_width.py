"""The pass `prune-width`: narrower feed-forwards, fewer groups of heads, a narrower hidden state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from smc.errors import InputError
from smc.ir import EncodedTensor, Function, Module, Node, Parameter
from smc.passes.axes import Axes, axes_of
from smc.passes.base import Context, Need, Pass
from smc.passes.experts import refuse_experts
from smc.passes.refit import refit
from smc.passes.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from smc.passes.calibration import Calibration

Kept = Mapping[tuple[str, str], "Tensor"]
"""(call, axis) → the places that are kept, int64, in order; the call of the hidden state is ""."""


@register("prune-width")
@dataclass(frozen=True)
class PruneWidth(Pass):
    """Keep the channels with the largest activations, as Minitron does (arXiv 2407.14679). Needs --calib FILE.

    ffn: inner channels of the feed-forward that each layer keeps, by the mean |input of `down`|. kv_heads: heads of
    keys and values that each layer keeps, with their queries, by the mean length of their results. hidden: channels of
    the hidden state that the whole model keeps, by the mean |result of norms|, summed over all norms. The model is
    smaller and dense; train it afterwards.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"torch", "calibration"})

    ffn: int | None = None
    kv_heads: int | None = None
    hidden: int | None = None

    def __post_init__(self) -> None:
        wanted = (self.ffn, self.kv_heads, self.hidden)
        if all(value is None for value in wanted) or any(value is not None and value < 1 for value in wanted):
            raise InputError(f"{self.name} needs ffn, kv_heads or hidden, how many to keep, each 1 or more")

    def run(self, module: Module, context: Context) -> Module:
        """Measure the channels and heads, and keep the largest."""
        if context.calibration is None:
            raise InputError(f"pass {self.name} needs a calibration text: give one with --calib FILE")
        refuse_experts(module, self.name)
        axes = {call.name: axes_of(function) for call, function in module.calls()}
        importance = _Importance(module, axes)
        importance.measure(context.calibration, context)
        result, kept, told = module.copy(), dict[tuple[str, str], Any](), []
        changes: dict[tuple[str, str], dict[str, int]] = {}
        if self.ffn is not None:
            kept |= {(call, "ffn"): _top(x, self.ffn, "ffn", call) for call, x in importance.ffn.items()}
            told.append(f"{max(len(x) for x in importance.ffn.values())} → {self.ffn} channels of feed-forwards")
        if self.kv_heads is not None:
            for name, scores in importance.groups.items():
                function = module.functions[module.main.node(name).attributes["function"]]
                kept |= _heads_kept(name, function, _top(scores, self.kv_heads, "kv_heads", name))
                changes |= _fewer_heads(function, self.kv_heads)
            told.append(f"{max(len(x) for x in importance.groups.values())} → {self.kv_heads} heads of keys and values")
        if self.hidden is not None:
            kept["", "hidden"] = _top(importance.hidden, self.hidden, "hidden", "the model")
            told.append(f"{len(importance.hidden)} → {self.hidden} channels of the hidden state")
        for call, _ in module.calls():
            for slot, name in call.attributes["parameters"].items():
                result.parameters[name] = _cut(module.parameters[name], call.name, axes[call.name].slots[slot], kept)
        refit(result, changes)
        context.report(", ".join(told))
        return result


class _Importance:
    """Means over a calibration text: ffn of channels, by call; groups of KV heads, by call; hidden of channels."""

    def __init__(self, module: Module, axes: Mapping[str, Axes]) -> None:
        self.module, self.axes = module, axes
        self.ffn: dict[str, Tensor] = {}
        self.groups: dict[str, Tensor] = {}
        self.hidden: Any = 0
        self.tokens = 0

    def measure(self, calibration: Calibration, context: Context) -> None:
        """Run the model once and collect the inputs of linears."""
        runner, calls = calibration.runner(self.module), [call for call, _ in self.module.calls()]
        for index, call in enumerate(calls):
            first: dict[str, str] = {}

            def observe(
                node: Node, operands: Sequence[Any], call: Node = call, first: dict[str, str] = first
            ) -> None:
                if node.op == "linear":
                    x = node.argument("x")
                    assert x is not None
                    if first.setdefault(x, node.name) == node.name:  # q, k and v have the same input
                        self._add(call, x, operands[node.inputs.index(x)])

            runner.observe(call, observe)
            if index + 1 < len(calls):
                runner.advance(call)
            context.progress((index + 1) / len(calls))

    def _add(self, call: Node, source: str, x: Tensor) -> None:
        axis = self.axes[call.name].values[source]
        if axis == "ffn":
            self.ffn[call.name] = self.ffn.get(call.name, 0) + x.abs().sum(0).double()
        elif axis == "hidden":
            self.hidden = self.hidden + x.abs().sum(0).double()
        elif axis == "query":
            function = self.module.functions[call.attributes["function"]]
            attention = next(function.attentions()).attributes
            lengths = x.view(len(x), attention["kv_heads"], -1, attention["head_dim"]).norm(dim=-1)
            self.groups[call.name] = self.groups.get(call.name, 0) + lengths.sum((0, 2)).double()


def _top(scores: Tensor, count: int, option: str, where: str) -> Tensor:
    """The places of the largest scores, in order."""
    if count > len(scores):
        raise InputError(f"prune-width can't keep {option}={count}: {where} has only {len(scores)}")
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _heads_kept(call: str, function: Function, groups: Tensor) -> dict[tuple[str, str], Tensor]:
    """The columns of queries, and of keys and values, in these groups of heads."""
    import torch

    attention = next(function.attentions()).attributes
    size = attention["head_dim"]
    width = attention["heads"] // attention["kv_heads"] * size
    kv = (groups[:, None] * size + torch.arange(size)).flatten()
    return {(call, "kv"): kv, (call, "query"): (groups[:, None] * width + torch.arange(width)).flatten()}


def _fewer_heads(function: Function, kv_heads: int) -> dict[tuple[str, str], dict[str, int]]:
    found = {}
    for node in function.attentions():
        heads = node.attributes["heads"] // node.attributes["kv_heads"] * kv_heads
        found[function.name, node.name] = {"heads": heads, "kv_heads": kv_heads}
    return found


def _cut(parameter: Parameter, call: str, axes: Sequence[str | None], kept: Kept) -> Parameter:
    """The parameter with the rows and columns that are kept; the same object if all are."""
    places = [None if a is None else kept.get(("" if a == "hidden" else call, a)) for a in axes]
    if all(place is None for place in places):
        return parameter
    if not parameter.encoding.is_float:
        raise InputError(f"{parameter.name} is quantized: prune its width first, then quantize")
    shape = tuple(size if p is None else len(p) for size, p in zip(parameter.shape, places, strict=True))
    return replace(parameter, shape=shape, load=partial(_cut_values, parameter, places))


def _cut_values(parameter: Parameter, places: Sequence[Tensor | None]) -> EncodedTensor:
    values = parameter.load().values
    assert values is not None
    for dim, place in enumerate(places):
        values = values if place is None else values.index_select(dim, place)
    return EncodedTensor(parameter.encoding, tuple(values.shape), values=values)
