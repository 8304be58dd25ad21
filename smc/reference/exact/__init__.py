"""The exact reference: it computes the results of an artifact, bit for bit.

There is one file for each op or for similar ops. They are sequential only where docs/numerics.md orders sums, and
vectorized over everything else.
"""

from __future__ import annotations

import importlib
import pkgutil

from smc.reference.exact.reference import ExactReference
from smc.reference.exact.registry import RULES, compute_exactly

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["RULES", "ExactReference", "compute_exactly"]
