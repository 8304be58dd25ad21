"""What a step minimizes: from examples to a loss whose gradients flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smc.errors import InputError
from smc.ir import Module
from smc.passes.training import Distill, Training
from smc.reference import Batch, Reference
from smc.training.data import Example
from smc.training.losses import Parts, prediction_loss, preference_loss, sequence_log_probabilities
from smc.training.program import Program


@dataclass
class Objective:
    """The loss of some examples. teacher: whom to learn from. first: DPO's reference, by the first example's id."""

    job: Training
    program: Program
    teacher: Module | None = None

    def __post_init__(self) -> None:
        self.taps = taps(self.program.module, self.teacher) if self.teacher and self._hidden else {}
        self.model = None if self.teacher is None else Reference(self.teacher)
        self.first: dict[int, Tensor] = {}

    @property
    def _hidden(self) -> float:
        return self.job.hidden if isinstance(self.job, Distill) else 0.0

    def weight(self, groups: Sequence[tuple[Example, ...]]) -> float:
        """By what the losses of these groups are divided: tokens that count, or pairs."""
        if self.job.objective == "preference":
            return float(len(groups))
        return sum(example.counts.sum().item() for group in groups for example in group)

    def loss(self, groups: Sequence[tuple[Example, ...]]) -> Tensor:
        """The sum of losses."""
        examples = [example for group in groups for example in group]
        batch, targets, counts = together(examples)
        values = self.program(batch)
        logits = values[self.program.module.main.outputs[0]]
        if self.job.objective == "preference":
            own = sequence_log_probabilities(logits, targets, counts, batch.lengths)
            first = torch.cat([self.first[id(group)] for group in groups])
            return preference_loss(own, first, self.job.beta)
        if not isinstance(self.job, Distill):
            return prediction_loss(logits, targets, counts, Parts(1.0))
        assert self.model is not None
        known = self.model.run(batch)
        parts = Parts(self.job.plain, self.job.forward, self.job.reverse, self.job.temperature)
        total = prediction_loss(logits, targets, counts, parts, known[self.model.module.main.outputs[0]])
        for own_name, teacher_name in self.taps.items():
            wanted = known[teacher_name].float().clone()  # outside of inference mode, as gradients need it
            apart = (values[own_name].float() - wanted).square().mean(-1) / wanted.square().mean()
            total = total + self.job.hidden / len(self.taps) * (apart * counts).sum()
        return total

    def remember(self, group: tuple[Example, ...]) -> Tensor:
        """The log-probabilities of a pair by the model as it is now."""
        batch, targets, counts = together(list(group))
        with torch.no_grad():
            logits = self.program(batch)[self.program.module.main.outputs[0]]
            return sequence_log_probabilities(logits, targets, counts, batch.lengths)


def together(examples: Sequence[Example]) -> tuple[Batch, Tensor, Tensor]:
    """A batch, and for each of its tokens the next one, int64 [n], and what its prediction counts, float32 [n].

    The last tokens of sequences predict nothing."""
    zero, nothing = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    targets = torch.cat([part for e in examples for part in (e.tokens[1:], zero)])
    counts = torch.cat([part for e in examples for part in (e.counts, nothing)])
    return Batch.of([example.tokens for example in examples]), targets, counts


def taps(module: Module, teacher: Module) -> dict[str, str]:
    """Values of `main` to compare, the model's → the teacher's: what a layer reads and what the layer that it came from
    reads. Of several layers that came from one the last counts. The head's input is always among them."""
    calls, others = module.layer_calls(), teacher.layer_calls()
    origins = {origin: place for place, origin in enumerate(teacher.layer_map()) if origin is not None}
    found: dict[int, str] = {}
    for call, origin in zip(calls, module.layer_map(), strict=True):
        if origin in origins:
            found[origins[origin]] = call.inputs[0]
    width = module.main.node(calls[-1].name).tensor.shape, teacher.main.node(others[-1].name).tensor.shape
    if width[0] != width[1]:
        raise InputError(f"hidden states of {width[0][1]} and {width[1][1]} channels can't be compared: use hidden=0")
    pairs = {own: others[place].inputs[0] for place, own in found.items() if place}
    return {**pairs, calls[-1].name: others[-1].name}
