"""Selects the parameters that a precision pass changes: matrices, by glob patterns."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from smc.errors import InputError
from smc.ir import Module, Parameter
from smc.passes.options import nearest


def pick_matrices(module: Module, include: Sequence[str], exclude: Sequence[str]) -> list[Parameter]:
    """The parameters with two or more dims that match a pattern of `include` and none of `exclude`.

    A pattern matches a parameter's name ("model.layers.0.*"), a slot that it fills ("v_proj") or the slot's role, which
    all architectures share ("value"). Vectors (norms, biases) and tables of positions are never selected, routers of
    experts only if a pattern names them: they are small, and their errors choose other experts. InputError if a pattern
    matches no matrix, because it must be a mistake.
    """
    positions = module.parameters_of("positions")
    names = {p.name: {p.name} for p in module.parameters.values() if len(p.shape) >= 2 and p.name not in positions}
    for call, function in module.calls():
        for slot, name in call.attributes["parameters"].items():
            if name in names:
                names[name] |= {slot, function.node(slot).attributes.get("role") or slot}
    hits = {pattern: _matching(pattern, names) for pattern in (*include, *exclude)}
    if "*" in hits:
        hits["*"] -= set(module.parameters_of("router"))
    for pattern, hit in hits.items():
        if not hit:
            slots = sorted(set().union(*names.values()) - set(names))
            raise InputError(f"the pattern {pattern!r} matches no matrix of the model: {nearest(pattern, slots)}")
    picked = set().union(*(hits[p] for p in include)) - set().union(*(hits[p] for p in exclude))
    return [module.parameters[name] for name in names if name in picked]


def _matching(pattern: str, names: dict[str, set[str]]) -> set[str]:
    return {name for name, aliases in names.items() if any(fnmatchcase(alias, pattern) for alias in aliases)}
