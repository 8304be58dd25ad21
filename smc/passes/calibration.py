"""Calibrated quantization: rounds the calls of a model in order, each with its inputs after the rounded calls
before."""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from smc.errors import InputError
from smc.ir import EncodedTensor, Encoding, Module, Node, Parameter
from smc.ir.ops import find
from smc.passes.base import Context
from smc.passes.guidance import GradientCalibration
from smc.passes.statistics import Accumulator, InputStatistics, Statistic

if TYPE_CHECKING:
    from torch import Tensor

Observe = Callable[[Node, Sequence[Any]], None]
"""A callback for every node that is computed, with its operands in the order of `node.inputs`."""


class Runner(Protocol):
    """Runs a module on the calibration text, one call after the other, and keeps the values that later calls read."""

    def observe(self, call: Node, observe: Observe, until: str | None = None) -> None:
        """Run a call up to the node `until`, only for its values."""

    def advance(self, call: Node, observe: Observe | None = None) -> None:
        """Run a call with the module's current parameters; later calls read its result. `observe` gets every node."""

    def values(self, name: str) -> Sequence[Tensor]:
        """A value of `main` that is still needed, float32 [n, columns] for one batch after the other."""


class Calibration(GradientCalibration, Protocol):
    """A calibration text, which `smc.reference` makes: the only way for passes to run a model."""

    def runner(self, module: Module, only_gradient_windows: bool = False) -> Runner:
        """A runner at the first call. Changes in `module.parameters` take effect."""

    def digest(self) -> str:
        """A hash of the text's tokens."""


class Method(Protocol):
    """Changes one matrix with statistics of its inputs: a `WeightQuantizer`, or a pass that prunes weights."""

    name: ClassVar[str]
    statistics: ClassVar[frozenset[Statistic]]

    def encode_parameter(self, parameter: Parameter, inputs: InputStatistics | None = None) -> EncodedTensor:
        """The new tensor of the parameter. inputs: None for a matrix without inputs."""


def loads_of(
    method: Method, module: Module, parameters: Sequence[Parameter], context: Context
) -> dict[str, Callable[[], EncodedTensor]]:
    """The `load` of every parameter, by name, after a method that encodes them one by one.

    If the method needs statistics, they are computed now, or in a lazy context when the first parameter is loaded.
    """
    if not (method.statistics and parameters):
        return {p.name: functools.partial(method.encode_parameter, p) for p in parameters}
    weights = CalibratedWeights(method, module, parameters, context)
    if not context.lazy:
        weights.run()
    return {p.name: functools.partial(weights.load, p.name) for p in parameters}


class CalibratedWeights:
    """Parameters that are quantized with statistics of their inputs, all at once, when the first is loaded or `run` is
    called.

    A parameter is rounded at the first call that multiplies by it, or else at the last one that uses it. Memory holds
    the float weights and activations of one call; a temporary folder keeps rounded parameters.
    """

    def __init__(
        self, method: Method, module: Module, parameters: Sequence[Parameter], context: Context
    ) -> None:
        """Nothing is computed yet. parameters: those of `module` to quantize."""
        self._method, self._module, self._context = method, module, context
        self._names = [parameter.name for parameter in parameters]
        self._encodings: dict[str, Encoding] = {}
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def load(self, name: str) -> EncodedTensor:
        """A parameter, quantized."""
        self.run()
        return self._read(name)

    def run(self) -> None:
        """Quantize all parameters, if that is not done yet. InputError without a calibration text."""
        with self._lock:
            if self._folder is not None:
                return
            if self._context.calibration is None:
                raise InputError(f"pass {self._method.name} needs a calibration text")
            self._folder = tempfile.TemporaryDirectory(prefix="smc-", ignore_cleanup_errors=True)
            try:
                self._run(self._context.calibration)
            except BaseException:
                self._folder.cleanup()
                self._folder = None
                raise

    def _run(self, calibration: Calibration) -> None:
        module, waiting = self._module.copy(), set(self._names)
        runner = calibration.runner(module)
        calls = [call for call, _ in module.calls()]
        sizes = [sum(_size(module.parameters[name]) for name in _parameters(call).values()) for call in calls]
        for index, call in enumerate(calls):
            slots = {slot: name for slot, name in _parameters(call).items() if name in waiting}
            inputs = self._inputs(runner, call, slots) if slots else {}
            later = {name for other in calls[index + 1 :] for name in _parameters(other).values()}
            for slot, name in slots.items():
                if name in waiting and (slot in inputs or name not in later):
                    self._quantize(module, name, inputs.get(slot))
                    waiting.remove(name)
            if not waiting:
                break
            runner.advance(call)
            self._context.progress(sum(sizes[: index + 1]) / sum(sizes))
        self._context.progress(1.0)

    def _inputs(self, runner: Runner, call: Node, slots: dict[str, str]) -> dict[str, InputStatistics]:
        """Statistics of the slots' inputs; slots with the same input have the same object. None for embeddings."""
        gathered: dict[str, Accumulator] = {}
        sources: dict[str, str] = {}  # slot → the value that it multiplies
        counted: dict[str, str] = {}  # that value → the first node that reads it, where it is counted

        def observe(node: Node, operands: Sequence[Any]) -> None:
            names = find(node.op).bind(node.inputs, node.attributes)
            read = [slot for slot in names.values() if slot in slots]
            source = names.get("x")
            if not read or source is None:
                return
            sources.update(dict.fromkeys((slot for slot in read if slot is not None), source))
            x = operands[node.inputs.index(source)].flatten(0, -2)
            if counted.setdefault(source, node.name) == node.name:
                gathered.setdefault(source, Accumulator(self._method.statistics, x.shape[1])).add(x)

        runner.observe(call, observe)
        results = {source: found.result(f"{call.name}, {source},") for source, found in gathered.items()}
        return {slot: results[source] for slot, source in sources.items()}

    def _quantize(self, module: Module, name: str, inputs: InputStatistics | None) -> None:
        parameter = module.parameters[name]
        tensor = self._method.encode_parameter(parameter, inputs)
        self._encodings[name] = tensor.encoding
        self._write(name, tensor)
        module.parameters[name] = replace(parameter, encoding=tensor.encoding, load=lambda: self._read(name))

    # ---- files of rounded parameters

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{self._names.index(name)}.safetensors"

    def _write(self, name: str, tensor: EncodedTensor) -> None:
        from safetensors.torch import save_file

        parts = {f.name: getattr(tensor, f.name) for f in fields(tensor) if f.name not in ("encoding", "shape")}
        save_file({key: part.contiguous() for key, part in parts.items() if part is not None}, self._path(name))

    def _read(self, name: str) -> EncodedTensor:
        from safetensors.torch import load_file

        parts: dict[str, Any] = load_file(self._path(name))
        return EncodedTensor(self._encodings[name], tuple(self._module.parameters[name].shape), **parts)


def _parameters(call: Node) -> dict[str, str]:
    parameters: dict[str, str] = call.attributes["parameters"]
    return parameters


def _size(parameter: Parameter) -> int:
    size = 1
    for dim in parameter.shape:
        size *= dim
    return size
