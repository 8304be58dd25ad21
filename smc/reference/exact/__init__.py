"""The exact reference: `Reference` computes what a module means, this computes what an artifact answers, to the bit.

One file for each op, or for some that are alike. They are sequential only where docs/numerics.md orders sums, and
vectorized over all else.
"""

from __future__ import annotations

import importlib
import pkgutil

from smc.reference.exact.reference import ExactReference
from smc.reference.exact.registry import RULES, compute_exactly

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["RULES", "ExactReference", "compute_exactly"]
