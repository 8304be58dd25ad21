"""UL2's mixture of denoisers (arXiv 2205.05131) in its variant for pre-trained causal models: UL2R (arXiv 2210.11399).

A window becomes the mode's token, the text with a sentinel in place of every missing span, and then, to be predicted,
each sentinel with its span.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Denoiser:
    """mode: the text that names the denoiser. span: the mean length of spans. share: the share of missing tokens.

    span 0: the window's end is missing (prefix language modelling), `share` of it on average.
    """

    mode: str
    span: float
    share: float


# The paper's settings (its table 1): two regular denoisers, the sequential one, and four extreme ones.
DENOISERS = (
    Denoiser("[NLU]", 3, 0.15),
    Denoiser("[NLU]", 8, 0.15),
    Denoiser("[S2S]", 0, 0.25),
    Denoiser("[NLG]", 3, 0.5),
    Denoiser("[NLG]", 8, 0.5),
    Denoiser("[NLG]", 64, 0.15),
    Denoiser("[NLG]", 64, 0.5),
)


def corrupted(tokens: Tensor, tokenizer: Any, seed: int) -> tuple[Tensor, Tensor]:
    """A window, int64 [n] → the example's tokens, and the weight of predicting each but the first, float32."""
    generator = torch.Generator().manual_seed(seed)
    choice = DENOISERS[int(torch.randint(len(DENOISERS), (), generator=generator))]
    missing = _spans(len(tokens), choice, generator)
    given, hidden = [_ids(tokenizer, choice.mode)], []
    place = 0
    for index, (start, end) in enumerate(missing):
        sentinel = _ids(tokenizer, f"<extra_id_{index}>")
        given += [tokens[place:start], sentinel]
        hidden += [sentinel, tokens[start:end]]
        place = end
    given.append(tokens[place:])
    first, second = torch.cat(given), torch.cat(hidden)
    counts = torch.cat([torch.zeros(len(first)), torch.ones(len(second))])
    return torch.cat([first, second]), counts[1:]


def _ids(tokenizer: Any, text: str) -> Tensor:
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int64)


def _spans(count: int, choice: Denoiser, generator: torch.Generator) -> list[tuple[int, int]]:
    """Where spans begin and end. Together they have the share of the tokens; places and lengths are random (as in
    T5)."""
    if choice.span == 0:
        share = 2 * choice.share * torch.rand((), generator=generator).item()
        return [(count - max(1, min(count - 1, round(share * count))), count)]
    lost = max(1, min(count - 1, round(count * choice.share)))
    spans = max(1, min(lost, count - lost, round(lost / choice.span)))
    lengths, gaps = (_parts(total, spans, generator) for total in (lost, count - lost))
    found, place = [], 0
    for gap, length in zip(gaps, lengths, strict=True):
        found.append((place + gap, place + gap + length))
        place += gap + length
    return found


def _parts(total: int, count: int, generator: torch.Generator) -> list[int]:
    """`total` cut at random places into `count` parts of 1 or more."""
    cuts = sorted((torch.randperm(total - 1, generator=generator)[: count - 1] + 1).tolist())
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]
