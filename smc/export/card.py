"""The model card: what a checkpoint was made from, how, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smc.ir import Module
from smc.passes.layers import ranges


def card(module: Module, quality: Mapping[str, Any], notes: Sequence[str]) -> str:
    """The card as Markdown. quality: the name of a figure → its text."""
    facts, origins = module.facts, module.layer_map()
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        f"# {facts.name}",
        "",
        "Made by smc from another checkpoint:",
        "",
        *(f"{number}. `{line}`" for number, line in enumerate(facts.provenance, start=1)),
        "",
        f"{module.weight_count():,} weights in {len(origins)} layers, "
        f"{module.bits_per_weight():.2f} bits per weight.",
    ]
    known = [origin for origin in origins if origin is not None]
    if len(known) == len(origins) and known != list(range(len(known))):
        lines += ["", f"Its layers were those with the numbers {ranges(known)}."]
    if quality:
        lines += ["", "| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in quality.items())]
    lines += [line for note in notes for line in ("", f"{note[0].upper()}{note[1:]}.")]
    return "\n".join(lines) + "\n"
