"""Causal attention of grouped queries (Ainslie et al., "GQA", 2023), perhaps within a sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smc.ir.ops.registry import TypeFault, op, same
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(
    q: TensorType, k: TensorType, v: TensorType, heads: int, kv_heads: int, head_dim: int, **_: Any
) -> TensorType:
    if heads % kv_heads:
        raise TypeFault(f"attention: {heads} heads are not a multiple of {kv_heads} KV heads")
    same("attention", q.shape[1], heads * head_dim, "width of q and heads * head_dim")
    for operand in (k, v):
        same("attention", operand.shape[1], kv_heads * head_dim, "width of k or v and kv_heads * head_dim")
    return q


@op(ranks={"q": 2, "k": 2, "v": 2}, result=_result, cached=("k", "v"))
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """q [n, heads·head_dim], k and v [n, kv_heads·head_dim] → softmax(scale · q·kᵀ)·v for every query head, like q.

    A token attends to itself and to earlier tokens, with a window only to the last `window` of these. softcap: scores s
    become softcap · tanh(s / softcap). In torch, n are the tokens of one whole sequence.
    """
    import torch
    from torch.nn import functional

    tokens = q.shape[0]
    q, k, v = (x.view(tokens, -1, head_dim).transpose(0, 1) for x in (q, k, v))
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    visible = (distance >= 0) & (distance < (window or tokens))
    if softcap is not None:
        k, v = (x.repeat_interleave(heads // kv_heads, dim=0) for x in (k, v))
        scores = (q @ k.transpose(1, 2) * (scale / softcap)).tanh() * softcap
        mixed = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v
        return mixed.transpose(0, 1).reshape(tokens, -1)
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=True)
    return mixed.transpose(0, 1).reshape(tokens, -1)
