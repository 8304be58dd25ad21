"""Losses of predictions; their gradients are computed with them, a few rows at a time.

Vocabularies are large: logits of 2,048 tokens of SmolLM2 take 400 MB in float32. So the loss and its gradient are
computed together for some rows, and only the gradient is kept, in the dtype of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = 32
"""The number of tokens whose logits are processed together."""


@dataclass(frozen=True)
class Parts:
    """The weights of the loss's terms: cross-entropy, KL(teacher ‖ model), KL(model ‖ teacher)."""

    plain: float
    forward: float = 0.0
    reverse: float = 0.0
    temperature: float = 1.0


def prediction_loss(
    logits: Tensor, targets: Tensor, counts: Tensor, parts: Parts, teacher: Tensor | None = None
) -> Tensor:
    """The sum over tokens of the loss of their prediction times their weight; differentiable in the logits.

    logits, teacher [n, vocab]; targets int64 [n]; counts float32 [n]. Divergences at temperature T are multiplied by
    T², so that gradients keep their size (Hinton et al., arXiv 1503.02531).
    """
    result: Tensor = _Loss.apply(logits, targets, counts, parts, teacher)  # type: ignore[no-untyped-call]
    return result


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, logits: Tensor, targets: Tensor, counts: Tensor, parts: Parts, teacher: Tensor | None
    ) -> Tensor:
        gradient, losses = torch.empty_like(logits), torch.zeros(len(logits))
        divergences = teacher is not None and bool(parts.forward or parts.reverse)
        # Buffers for all rounds: allocating memory of this size costs more than the arithmetic.
        own, other, q, p = (torch.empty(ROWS, logits.shape[1]) for _ in range(4))
        for start in range(0, len(logits), ROWS):
            rows = slice(start, min(start + ROWS, len(logits)))
            x, t, a, b = (buffer[: rows.stop - start] for buffer in (own, other, q, p))
            x.copy_(logits[rows])
            if divergences:
                assert teacher is not None
                t.copy_(teacher[rows])
                losses[rows] = _divergences(x, t, a, b, parts)
                if parts.plain:
                    b.copy_(a)
                    x.copy_(logits[rows])
                    losses[rows] += _cross_entropy(x, targets[rows], a, parts.plain)
                    a.add_(b)
            else:
                losses[rows] = _cross_entropy(x, targets[rows], a, parts.plain)
            gradient[rows] = a.mul_(counts[rows, None])
        context.save_for_backward(gradient)
        return (losses * counts).sum()

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = context.saved_tensors
        return gradient * upstream, None, None, None, None


def _softmax(x: Tensor, out: Tensor) -> Tensor:
    """Fill `out` with the softmax of rows; the logarithm of what they were divided by, [n]: x - it are log-softmax."""
    torch.softmax(x, -1, out=out)
    largest, place = x.max(-1)
    return largest - out.gather(1, place[:, None])[:, 0].log()


def _cross_entropy(x: Tensor, targets: Tensor, slope: Tensor, weight: float) -> Tensor:
    """weight times the losses [n] of logits x [n, vocab]; their gradients go to `slope`."""
    log_sum, places = _softmax(x, slope), targets[:, None]
    slope.scatter_add_(1, places, torch.full(places.shape, -1.0)).mul_(weight)
    return weight * (log_sum - x.gather(1, places)[:, 0])


def _divergences(x: Tensor, t: Tensor, q: Tensor, p: Tensor, parts: Parts) -> Tensor:
    """What the divergences of logits x from a teacher's t lose, [n]; all four are overwritten, q by the gradients.

    log q - log p is x - t but for a constant per row, so only one of the two is ever made.
    """
    heat = parts.temperature
    if heat != 1:
        x.div_(heat)
        t.div_(heat)
    shift = (_softmax(t, p) - _softmax(x, q))[:, None]
    apart, loss = x.sub_(t).add_(shift), torch.zeros(len(x))
    if parts.reverse:
        product = torch.mul(q, apart, out=t)
        divergence = product.sum(-1)
        loss += parts.reverse * heat * heat * divergence
        product.sub_(q * divergence[:, None]).mul_(parts.reverse * heat)  # their part of the gradient
    if not parts.forward:
        q.copy_(t)
        return loss
    loss -= parts.forward * heat * heat * apart.mul_(p).sum(-1)
    q.sub_(p).mul_(parts.forward * heat)
    if parts.reverse:
        q.add_(t)
    return loss


def sequence_log_probabilities(logits: Tensor, targets: Tensor, counts: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """For every sequence of a batch, the sum of the log-probabilities of the tokens that count, float32 [sequences].

    logits [n, vocab], targets and counts [n], n = Σ lengths; differentiable.
    """
    parts = zip(*(torch.split(x, list(lengths)) for x in (logits, targets, counts)), strict=True)
    return torch.stack([-prediction_loss(x, target, count, Parts(1.0)) for x, target, count in parts])


def preference_loss(own: Tensor, reference: Tensor, beta: float) -> Tensor:
    """DPO (Rafailov et al., arXiv 2305.18290, equation 7), summed over pairs.

    own, reference: log-probabilities of sequences by the trained model and by the model before training, [2 · pairs]:
    chosen, rejected, chosen, rejected …
    """
    gains = (own - reference).view(-1, 2)
    return -torch.nn.functional.logsigmoid(beta * (gains[:, 0] - gains[:, 1])).sum()
