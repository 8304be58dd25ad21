"""The distance between two models' attention, for a loss at the taps of distillation (Jiao et al., "TinyBERT",
arXiv 1909.10351; as a divergence: Wang et al., "MiniLM", arXiv 2002.10957).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from smc.ir import Node
from smc.reference.execution import Hook


@dataclass
class AttentionInputs(Hook):
    """Keeps what the attention of some calls reads: q [n, heads · head_dim] and k [n, kv_heads · head_dim], by call."""

    calls: Collection[str]
    found: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def reads(self, call: Node, node: Node, operands: list[Any]) -> Sequence[Any]:
        """See every node; the operands go on unchanged."""
        if node.op == "attention" and call.name in self.calls:
            q, k = (operands[node.inputs.index(str(node.argument(name)))] for name in ("q", "k"))
            self.found[call.name] = q, k
        return operands


def attention_divergence(
    teacher: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    lengths: Sequence[int],
    attributes: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> Tensor:
    """float32 [n]: KL(teacher ‖ own) of what every token attends to, the mean over heads, in nats.

    teacher, own: q and k, with as many heads. lengths: of the sequences that the n rows are. attributes: of the
    teacher's and the model's op.
    """
    found = []
    for rows in zip(*(torch.split(x, list(lengths)) for x in (*teacher, *own)), strict=True):
        expected, visible = _log_attention(rows[0], rows[1], attributes[0])
        made, _ = _log_attention(rows[2], rows[3], attributes[1])
        apart = (expected - made).masked_fill(~visible, 0)
        found.append((expected.exp() * apart).sum(-1).mean(0))
    return torch.cat(found)


def _log_attention(q: Tensor, k: Tensor, attributes: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Log-probabilities [heads, n, n] of one sequence, and what is visible, bool [n, n]."""
    tokens, heads, kv_heads = len(q), attributes["heads"], attributes["kv_heads"]
    queries, keys = (x.float().view(tokens, -1, attributes["head_dim"]).transpose(0, 1) for x in (q, k))
    scores = queries @ keys.repeat_interleave(heads // kv_heads, dim=0).transpose(1, 2) * attributes["scale"]
    softcap = attributes.get("softcap")
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    visible = (distance >= 0) & (distance < (attributes.get("window") or tokens))
    return scores.masked_fill(~visible, -torch.inf).log_softmax(-1), visible
