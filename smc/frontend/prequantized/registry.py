"""The methods of storing quantized weights: each registers itself under its `quant_method`."""

from __future__ import annotations

from collections.abc import Callable

from smc.errors import InputError
from smc.frontend.checkpoint import StoredTensor
from smc.frontend.config import Config

Tensors = dict[str, StoredTensor]
Method = Callable[[Config, Tensors], Tensors]
"""(quantization_config, the stored tensors) → the tensors that architectures expect."""

_registered: dict[str, Method] = {}


def method(*names: str) -> Callable[[Method], Method]:
    """Decorator of a function that reads a method's tensors; names: its `quant_method`, in every spelling."""

    def declare(read: Method) -> Method:
        _registered.update(dict.fromkeys(names, read))
        return read

    return declare


def find_method(config: Config) -> Method:
    """The method that a quantization_config names; InputError lists the supported ones."""
    name = config.text("quant_method", "an unnamed method")
    if name not in _registered:
        known = ", ".join(sorted(_registered))
        raise InputError(f"{config.origin}: weights quantized with {name} are not supported; supported are {known}")
    return _registered[name]
