"""How good a model is on a text: perplexity, and KL divergence and top-1 agreement against another model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LogitsFunction = Callable[[Tensor], Tensor]
"""Tokens of one sequence, int64 [n] → logits, float32 [n, vocab]: `Reference(module).logits`, or an artifact's."""


@dataclass(frozen=True)
class Evaluation:
    """Averages over all scored tokens. KL divergence in nats; `kl_divergence` and `same_top` only against a model."""

    tokens: int
    perplexity: float
    kl_divergence: float | None = None
    same_top: float | None = None


def text_windows(tokens: Sequence[int], context: int, limit: int | None = None) -> list[Tensor]:
    """Non-overlapping windows, int64 [context], of a tokenized text; the rest that fills no window is left out."""
    whole = torch.tensor(tokens, dtype=torch.int64)
    count = len(whole) // context
    return list(whole[: count * context].view(count, context)[:limit])


def kl_divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL(reference ‖ other) of the next-token distributions, in nats: logits [n, vocab] twice → float32 [n]."""
    p, q = torch.log_softmax(reference.float(), -1), torch.log_softmax(other.float(), -1)
    return (p.exp() * (p - q)).sum(-1)


def evaluate(
    logits: LogitsFunction,
    windows: Iterable[Tensor],
    against: LogitsFunction | None = None,
    scored: Literal["full", "second-half"] = "full",
) -> Evaluation:
    """Score a model on windows of a text, each seen alone.

    scored: "full" scores every token of a window but its first; "second-half" only those behind the middle, each with
    at least half a window before it, as llama.cpp's perplexity tool does.
    """
    tokens, loss, divergence, same = 0, 0.0, 0.0, 0
    for window in windows:
        first = 0 if scored == "full" else len(window) // 2
        targets = window[first + 1 :]
        predicted = logits(window)[first:-1].float()
        tokens += len(targets)
        loss += torch.nn.functional.cross_entropy(predicted, targets, reduction="sum").item()
        if against is not None:
            expected = against(window)[first:-1].float()
            divergence += kl_divergence(expected, predicted).sum(dtype=torch.float64).item()
            same += int((expected.argmax(-1) == predicted.argmax(-1)).sum())
    if not tokens:
        raise ValueError("no window to score")
    perplexity = math.exp(loss / tokens)
    if against is None:
        return Evaluation(tokens, perplexity)
    return Evaluation(tokens, perplexity, divergence / tokens, same / tokens)
