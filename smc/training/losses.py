"""What a step minimizes, by predictions; gradients are made on the way there, a few rows at a time.

A vocabulary is wide: logits of 2,048 tokens of SmolLM2 take 400 MB in float32. So a loss and its gradient are computed
together for some rows, and only the gradient is kept, in the dtype of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = 128
"""Tokens whose logits are looked at together."""


@dataclass(frozen=True)
class Parts:
    """How much each part of the loss counts: cross-entropy, KL(teacher ‖ model), KL(model ‖ teacher)."""

    plain: float
    forward: float = 0.0
    reverse: float = 0.0
    temperature: float = 1.0


def prediction_loss(
    logits: Tensor, targets: Tensor, counts: Tensor, parts: Parts, teacher: Tensor | None = None
) -> Tensor:
    """The sum over tokens of what each one's prediction loses times what it counts; differentiable in the logits.

    logits, teacher [n, vocab]; targets int64 [n]; counts float32 [n]. Divergences at temperature T count T² times, so
    that gradients keep their size (Hinton et al., arXiv 1503.02531).
    """
    result: Tensor = _Loss.apply(logits, targets, counts, parts, teacher)  # type: ignore[no-untyped-call]
    return result


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, logits: Tensor, targets: Tensor, counts: Tensor, parts: Parts, teacher: Tensor | None
    ) -> Tensor:
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float32)
        for start in range(0, len(logits), ROWS):
            rows = slice(start, start + ROWS)
            own = None if teacher is None else teacher[rows].float()
            loss, slope = _rows(logits[rows].float(), targets[rows], parts, own)
            total += (loss * counts[rows]).sum()
            gradient[rows] = slope.mul_(counts[rows, None])
        context.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = context.saved_tensors
        return gradient * upstream, None, None, None, None


def _rows(logits: Tensor, targets: Tensor, parts: Parts, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses [n] of some rows, and their gradients [n, vocab]."""
    loss, slope = torch.zeros(len(logits)), torch.zeros_like(logits)
    if parts.plain:
        log_q = torch.log_softmax(logits, -1)
        loss -= parts.plain * log_q.gather(1, targets[:, None])[:, 0]
        slope += parts.plain * log_q.exp()
        slope.scatter_add_(1, targets[:, None], torch.full((len(logits), 1), -parts.plain))
    if teacher is not None and (parts.forward or parts.reverse):
        heat = parts.temperature
        log_q, log_p = torch.log_softmax(logits / heat, -1), torch.log_softmax(teacher / heat, -1)
        q, p, apart = log_q.exp(), log_p.exp(), log_q - log_p
        if parts.forward:
            loss -= parts.forward * heat * heat * (p * apart).sum(-1)
            slope += parts.forward * heat * (q - p)
        if parts.reverse:
            divergence = (q * apart).sum(-1)
            loss += parts.reverse * heat * heat * divergence
            slope += parts.reverse * heat * q * (apart - divergence[:, None])
    return loss, slope


def sequence_log_probabilities(logits: Tensor, targets: Tensor, counts: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """float32 [sequences]: the sum of log-probabilities of the tokens that count, of every sequence of a batch.

    logits [n, vocab], targets and counts [n], n = Σ lengths; differentiable.
    """
    parts = zip(*(torch.split(x, list(lengths)) for x in (logits, targets, counts)), strict=True)
    return torch.stack([-prediction_loss(x, target, count, Parts(1.0)) for x, target, count in parts])


def preference_loss(own: Tensor, reference: Tensor, beta: float) -> Tensor:
    """DPO (Rafailov et al., arXiv 2305.18290, equation 7), summed over pairs.

    own, reference: log-probabilities of sequences by the trained and by the first model, [2 · pairs]: chosen, rejected,
    chosen, rejected …
    """
    gains = (own - reference).view(-1, 2)
    return -torch.nn.functional.logsigmoid(beta * (gains[:, 0] - gains[:, 1])).sum()
