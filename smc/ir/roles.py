"""Roles of parameter slots: what a tensor is for, whatever its architecture calls it. Passes and recipes go by them."""

from __future__ import annotations

ROLES = (
    "embedding",
    "positions",  # a table of position embeddings
    "head",
    "query",
    "key",
    "value",
    "output",  # of attention
    "gate",
    "up",
    "down",
    "norm",
    "bias",
)
"""Every role that a slot may have."""
