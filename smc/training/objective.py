"""The loss of a step, from examples, with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smc.errors import InputError
from smc.ir import Module, Node
from smc.passes.layers import parse_layers
from smc.passes.training import Distill, Training
from smc.reference import Batch, Reference
from smc.training.attention import AttentionInputs, attention_divergence
from smc.training.data import Example
from smc.training.losses import Parts, prediction_loss, preference_loss, sequence_log_probabilities
from smc.training.program import Program


@dataclass
class Objective:
    """The loss of some examples. teacher: the model to learn from. first: log-probabilities of DPO's reference, by
    group."""

    job: Training
    program: Program
    teacher: Module | None = None

    def __post_init__(self) -> None:
        self.taps, self.attended = dict[str, str](), list[tuple[Node, Node]]()
        if self.teacher is not None and isinstance(self.job, Distill):
            module = self.program.module
            if self.job.hidden:
                self.taps = hidden_taps(module, self.teacher, self.job.taps)
            if self.job.attention:
                self.attended = attention_taps(module, self.teacher, self.job.taps)
        self.model = None if self.teacher is None else Reference(self.teacher)
        self.first: dict[int, Tensor] = {}

    def weight(self, groups: Sequence[tuple[Example, ...]]) -> float:
        """What the losses of these groups are divided by: the tokens that count, or the pairs."""
        if self.job.objective == "preference":
            return float(len(groups))
        return sum(example.counts.sum().item() for group in groups for example in group)

    def loss(self, groups: Sequence[tuple[Example, ...]]) -> Tensor:
        """The sum of the losses of these groups."""
        examples = [example for group in groups for example in group]
        batch, targets, counts = together(examples)
        values, attended = self.program(batch, {own.name for own, _ in self.attended})
        logits = values[self.program.module.main.outputs[0]]
        if self.job.objective == "preference":
            own = sequence_log_probabilities(logits, targets, counts, batch.lengths)
            first = torch.cat([self.first[id(group)] for group in groups])
            return preference_loss(own, first, self.job.beta)
        if not isinstance(self.job, Distill):
            return prediction_loss(logits, targets, counts, Parts(1.0))
        assert self.model is not None
        hook = AttentionInputs({other.name for _, other in self.attended})
        known = self.model.run(batch, hook)
        parts = Parts(self.job.plain, self.job.forward, self.job.reverse, self.job.temperature)
        total = prediction_loss(logits, targets, counts, parts, known[self.model.module.main.outputs[0]])
        for own_name, teacher_name in self.taps.items():
            wanted = known[teacher_name].float().clone()  # outside of inference mode, as gradients need it
            # By token: the first of a text may have activations a thousand times those of all others.
            apart = (values[own_name].float() - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=1e-12)
            total = total + self.job.hidden / len(self.taps) * (apart * counts).sum()
        for mine, other in self.attended:
            q, k = hook.found[other.name]
            kinds = _attention(self.model.module, other), _attention(self.program.module, mine)
            apart = attention_divergence((q.clone(), k.clone()), attended[mine.name], batch.lengths, kinds)
            total = total + self.job.attention / len(self.attended) * (apart * counts).sum()
        return total

    def remember(self, group: tuple[Example, ...]) -> Tensor:
        """The log-probabilities of a pair by the model in its current state."""
        batch, targets, counts = together(list(group))
        with torch.no_grad():
            logits = self.program(batch)[0][self.program.module.main.outputs[0]]
            return sequence_log_probabilities(logits, targets, counts, batch.lengths)


def together(examples: Sequence[Example]) -> tuple[Batch, Tensor, Tensor]:
    """A batch, and for each of its tokens the next one, int64 [n], and the weight of its prediction, float32 [n].

    The last tokens of sequences predict nothing."""
    zero, nothing = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    targets = torch.cat([part for e in examples for part in (e.tokens[1:], zero)])
    counts = torch.cat([part for e in examples for part in (e.counts, nothing)])
    return Batch.of([example.tokens for example in examples]), targets, counts


def layer_pairs(module: Module, teacher: Module, wanted: Sequence[str] = ()) -> list[tuple[Node, Node]]:
    """Layers of the model, each with the teacher's that it came from by the layer map; of several copies the last.

    wanted: only these of the model's layers ("3", "0-5"). InputError if one of them came from none.
    """
    calls, others = module.layer_calls(), teacher.layer_calls()
    origins = {origin: other for other, origin in zip(others, teacher.layer_map(), strict=True) if origin is not None}
    known = {place: origin for place, origin in enumerate(module.layer_map()) if origin in origins}
    if wanted:
        chosen = parse_layers(wanted, len(calls), "taps")
        for place in chosen:
            if place not in known:
                raise InputError(f"layer {place} came from no layer of the teacher: leave it out of taps")
        known = {place: known[place] for place in sorted(chosen)}
    last = {origin: place for place, origin in known.items()}
    return [(calls[place], origins[origin]) for origin, place in last.items() if origin is not None]


def hidden_taps(module: Module, teacher: Module, wanted: Sequence[str] = ()) -> dict[str, str]:
    """Values of `main` to compare, the model's → the teacher's: what a layer reads and what the layer that it came from
    reads; without `wanted` also what the head reads. InputError where the widths differ."""
    last, other = module.layer_calls()[-1], teacher.layer_calls()[-1]
    width = module.main.node(last.name).tensor.shape, teacher.main.node(other.name).tensor.shape
    if width[0] != width[1]:
        raise InputError(f"hidden states of {width[0][1]} and {width[1][1]} channels can't be compared: use hidden=0")
    first = teacher.layer_calls()[0].name
    pairs = {a.inputs[0]: b.inputs[0] for a, b in layer_pairs(module, teacher, wanted) if b.name != first}
    if wanted and not pairs:
        raise InputError("the first layer reads what the teacher's reads: name other layers in taps")
    return pairs if wanted else {**pairs, last.name: other.name}


def attention_taps(module: Module, teacher: Module, wanted: Sequence[str] = ()) -> list[tuple[Node, Node]]:
    """Layers whose attention is compared, each with the teacher's. InputError where heads or windows differ."""
    pairs = layer_pairs(module, teacher, wanted)
    if not pairs:
        raise InputError("no layer of the model came from one of the teacher's: use attention=0")
    for own, other in pairs:
        mine, known = _attention(module, own), _attention(teacher, other)
        for key, what in (("heads", "heads"), ("window", "tokens in its window")):
            if mine[key] != known[key]:
                raise InputError(
                    f"the attention of {own.name} has {mine[key]} {what}, that of the teacher's {other.name} has "
                    f"{known[key]}, so they can't be compared: use attention=0, or name other layers in taps"
                )
    return pairs


def _attention(module: Module, call: Node) -> Mapping[str, Any]:
    """The attributes of a layer's attention."""
    return next(module.functions[call.attributes["function"]].attentions()).attributes
