"""The ops of the ir, each declared in a file of this folder (registry.py says how).

n is the number of tokens of a step. Attention also reads k and v of earlier tokens of the same sequence: the ir has no
KV cache, codegen introduces it.

Three kinds of nodes are not ops: a function's inputs, its parameter slots, and calls of other functions.
"""

from __future__ import annotations

import importlib
import pkgutil

from smc.ir.ops.registry import OPS, Op, TypeFault, find, infer_type

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["OPS", "Op", "TypeFault", "find", "infer_type"]
