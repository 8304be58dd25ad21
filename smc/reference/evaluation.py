"""Quality of a model on a text: perplexity, and KL divergence and top-1 agreement with another model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from smc.ir import Module
from smc.reference.runner import CallRunner

LogitsFunction = Callable[[Tensor], Tensor]
"""Tokens of one sequence, int64 [n] → logits, float32 [n, vocab]: `Reference(module).logits`, or an artifact's."""

Convention = Literal["full", "second-half"]
"""Which tokens of a window are scored: all but its first, or only the second half, as in llama.cpp's perplexity
tool."""


@dataclass(frozen=True)
class Evaluation:
    """Averages over all scored tokens. KL divergence in nats; all but `tokens` and `perplexity` only against a model.

    kl_error: the standard error of the mean over windows; None of a single one. median_kl and kl_99: the divergence
    that half of the tokens, and 99 % of them, do not exceed. same_top: the share of tokens with the same likeliest one.
    """

    tokens: int
    perplexity: float
    kl_divergence: float | None = None
    same_top: float | None = None
    kl_error: float | None = None
    median_kl: float | None = None
    kl_99: float | None = None


@dataclass(frozen=True)
class Scores:
    """Results for every token of every window except its first: float64 and bool [window - 1], one per window."""

    losses: list[Tensor]
    divergences: list[Tensor]
    same_top: list[Tensor]

    def add(self, window: Tensor, logits: Tensor, expected: Tensor | None) -> None:
        """Score a window, int64 [n], by logits [n, vocab], and these by those that are expected."""
        predicted = logits[:-1].float()
        self.losses.append(torch.nn.functional.cross_entropy(predicted, window[1:], reduction="none").double())
        if expected is not None:
            expected = expected[:-1].float()
            self.divergences.append(kl_divergence(expected, predicted).double())
            self.same_top.append(expected.argmax(-1) == predicted.argmax(-1))

    def summary(self, scored: Convention = "full") -> Evaluation:
        """The averages by a convention. ValueError if there is no window."""

        def behind(parts: list[Tensor]) -> list[Tensor]:
            return [part if scored == "full" else part[(len(part) + 1) // 2 :] for part in parts]

        losses = torch.cat([torch.empty(0, dtype=torch.float64), *behind(self.losses)])
        if not len(losses):
            raise ValueError("there is no window to score")
        tokens, perplexity = len(losses), math.exp(losses.mean().item())
        if not self.divergences:
            return Evaluation(tokens, perplexity)
        windows, same = behind(self.divergences), torch.cat(behind(self.same_top))
        divergences, means = torch.cat(windows), torch.stack([window.mean() for window in windows])
        return Evaluation(
            tokens,
            perplexity,
            divergences.mean().item(),
            same.double().mean().item(),
            (means.std() / math.sqrt(len(means))).item() if len(means) > 1 else None,
            divergences.quantile(0.5).item(),
            divergences.quantile(0.99).item(),
        )


def text_windows(tokens: Sequence[int], context: int, limit: int | None = None) -> list[Tensor]:
    """Consecutive windows, int64 [context], of a tokenized text; an incomplete last window is left out."""
    whole = torch.tensor(tokens, dtype=torch.int64)
    count = len(whole) // context
    return list(whole[: count * context].view(count, context)[:limit])


def kl_divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL(reference ‖ other) of the next-token distributions, in nats: logits [n, vocab] twice → float32 [n]."""
    p, q = torch.log_softmax(reference.float(), -1), torch.log_softmax(other.float(), -1)
    return (p.exp() * (p - q)).sum(-1)


def score(
    logits: LogitsFunction,
    windows: Sequence[Tensor],
    against: LogitsFunction | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Scores:
    """Run a model, and another to compare with, on windows of a text, each window alone, and score every token."""
    scores = Scores([], [], [])
    for index, window in enumerate(windows):
        scores.add(window, logits(window), None if against is None else against(window))
        progress((index + 1) / len(windows))
    return scores


def compare(
    module: Module, other: Module, windows: Sequence[Tensor], progress: Callable[[float], None] = lambda fraction: None
) -> tuple[Scores, Scores]:
    """A module's scores against another, by the reference, and the other's own; a layer of each in memory at a time."""
    own = _logits_of(module, windows, lambda fraction: progress(fraction / 2))
    right = _logits_of(other, windows, lambda fraction: progress(0.5 + fraction / 2))
    scores, others = Scores([], [], []), Scores([], [], [])
    for window, predicted, expected in zip(windows, own, right, strict=True):
        scores.add(window, predicted, expected)
        others.add(window, expected, None)
    return scores, others


def _logits_of(module: Module, windows: Sequence[Tensor], progress: Callable[[float], None]) -> Iterator[Tensor]:
    """A module's logits for one window after the other, float32 [n, vocab]; all but its head has run before."""
    runner, calls = CallRunner(module, windows, batch_tokens=1), [call for call, _ in module.calls()]
    for index, call in enumerate(calls[:-1]):
        runner.advance(call)
        progress((index + 1) / len(calls))
    progress(1.0)
    return runner.results(calls[-1])


def evaluate(
    logits: LogitsFunction,
    windows: Iterable[Tensor],
    against: LogitsFunction | None = None,
    scored: Convention = "full",
) -> Evaluation:
    """Score a model on windows of a text, each seen alone, by a convention. ValueError if there is no window."""
    return score(logits, list(windows), against).summary(scored)
