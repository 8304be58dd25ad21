"""Rounding of activations to int8, as docs/numerics.md defines it for every machine."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from smc.ir import Encoding, ceil_div


def quantize_activations(x: Tensor, group: int | Literal["token"]) -> tuple[Tensor, Tensor]:
    """Round float32 [n, columns] to symmetric int8, `group` neighbouring columns sharing a scale.

    Returns codes int8 [n, groups, group] (the last group padded with zeros) and scales float32 [n, groups].
    amax = max|x|; scale = amax / 127; code = round_half_even(x * (127 / amax)); codes are 0 where amax ≤ 1e-30.
    """
    tokens, columns = x.shape
    size = columns if group == "token" else group
    groups = ceil_div(columns, size)
    padded = torch.nn.functional.pad(x, (0, groups * size - columns)).view(tokens, groups, size)
    amax = padded.abs().amax(-1)
    # One division: torch computes `127 / amax` as a product with the reciprocal, which rounds twice.
    inverse = torch.where(amax > 1e-30, torch.full_like(amax, 127).div(amax), 0)
    return torch.round(padded * inverse[..., None]).to(torch.int8), amax / 127


def quantize_heads(x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Round float32 [n, heads · head_dim] as an int8 KV cache does, every head of a token with a scale of its own.

    Returns codes, whole numbers as float32 [n, heads, head_dim], and scales float32 [n, heads].
    """
    codes, scales = quantize_activations(x.reshape(len(x) * heads, -1), "token")
    return codes.float().view(len(x), heads, -1), scales.view(len(x), heads)


def round_activations(x: Tensor, encoding: Encoding) -> Tensor:
    """The input of a matrix with this encoding, float32 [n, columns], rounded if the encoding says so."""
    if encoding.activations is None:
        return x
    codes, scales = quantize_activations(x.detach(), encoding.activations.group)
    return straight_through(x, (codes.float() * scales[..., None]).view(x.shape[0], -1)[:, : x.shape[1]])


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient of `x` if gradients are recorded: the straight-through estimator (Bengio et al.,
    2013)."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return rounded
    result: Tensor = _StraightThrough.apply(x, rounded.detach())  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    """Exactly `rounded`; x + (rounded - x) would be off by a rounding error."""

    @staticmethod
    def forward(context: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
