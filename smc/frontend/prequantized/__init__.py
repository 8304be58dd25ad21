"""Weights that a Hugging Face checkpoint stores quantized: one file per `quant_method`, from its tensors to codes."""

from __future__ import annotations

import importlib
import pkgutil

from smc.frontend.prequantized.registry import find_method

__all__ = ["find_method"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
