"""Passes that take no mixtures of experts."""

from __future__ import annotations

from smc.errors import InputError
from smc.ir import Module


def refuse_experts(module: Module, name: str) -> None:
    """InputError where tokens choose matrices: what a pass finds out of all tokens is not what an expert sees."""
    if module.chosen_by_token():
        raise InputError(f"the pass {name} can't work on {module.facts.name}, a mixture of experts, yet")
