"""The supported architectures: one file each, from a config to the functions of the ir."""

from __future__ import annotations

import importlib
import pkgutil

from smc.frontend.architectures.decoder import assemble
from smc.frontend.architectures.registry import architectures, find_architecture
from smc.frontend.checkpoint import Checkpoint
from smc.ir import Module

__all__ = ["architectures", "build_module", "find_architecture"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build_module(checkpoint: Checkpoint) -> Module:
    """The ir of a checkpoint; InputError if its architecture is not supported or its tensors do not fit it."""
    found = find_architecture(checkpoint)
    return assemble(found.build(checkpoint), checkpoint, found.name)
