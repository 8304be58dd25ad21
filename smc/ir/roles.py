"""Roles of parameter slots: what a tensor is for, whatever its architecture calls it. Passes and recipes use them."""

from __future__ import annotations

ROLES = (
    "embedding",
    "positions",  # a table of position embeddings
    "head",
    "query",
    "key",
    "value",
    "output",  # attention
    "gate",
    "up",
    "down",
    "router",  # of a mixture of experts
    "norm",
    "bias",
)
"""Every role that a slot may have."""
