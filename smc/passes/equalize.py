"""`Equalizer`: scales columns of matrices up and their inputs down, so that results do not change.

Only inputs that a norm computes are scaled, by the norm's weights, so that this costs nothing.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from smc.errors import InputError
from smc.ir import EncodedTensor, Module, Node, Parameter, encode_float
from smc.passes.base import Context, Need, Pass
from smc.passes.statistics import Accumulator, InputStatistics, Statistic

if TYPE_CHECKING:
    from torch import Tensor

NORMS = ("rms_norm", "layer_norm")


@dataclass(frozen=True)
class ScaledValue:
    """A norm's result in one call, the first node that reads it, and the parameters around it: the norm's own, and the
    matrices that multiply it."""

    value: str
    reader: str
    norm: tuple[str, ...]
    matrices: tuple[str, ...]


@dataclass(frozen=True)
class Equalizer(Pass):
    """Base of methods that move the size of inputs into the weights; a subclass chooses the factors.

    Statistics are those of the given model. A norm is left as it is if one of its readers is quantized or used
    elsewhere (a tied head).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"torch", "calibration"})

    statistics: ClassVar[frozenset[Statistic]] = frozenset()
    """The statistics of inputs that `factors` needs."""

    @abstractmethod
    def factors(self, matrices: Sequence[Tensor], inputs: InputStatistics) -> Tensor:
        """The factors of the columns, positive float32 [columns], of float32 matrices [rows, columns] with the same
        inputs."""

    def run(self, module: Module, context: Context) -> Module:
        """Scale the norms and the matrices of all calls. A lazy context does nothing, because no encoding changes."""
        if context.lazy:
            return module
        if context.calibration is None:
            raise InputError(f"pass {self.name} needs a calibration text")
        runner, result, count = context.calibration.runner(module), module.copy(), 0
        calls = [call for call, _ in module.calls()]
        for index, call in enumerate(calls):
            values = scaled_values(module, call)
            gathered = {found.reader: self._accumulator(module, found) for found in values}

            def observe(node: Node, operands: Sequence[Any], gathered: dict[str, Accumulator] = gathered) -> None:
                if node.name in gathered:
                    gathered[node.name].add(operands[0])

            if values:
                runner.observe(call, observe)
            for found in values:
                inputs = gathered[found.reader].result(f"{call.name}, {found.value},")
                matrices = [module.parameters[name].values() for name in found.matrices]
                self._scale(result, found, self.factors(matrices, inputs))
                count += len(found.matrices)
            if index + 1 < len(calls):
                runner.advance(call)
            context.progress((index + 1) / len(calls))
        context.report(f"the columns of {count} matrices scaled")
        return result

    def _accumulator(self, module: Module, found: ScaledValue) -> Accumulator:
        return Accumulator(self.statistics, module.parameters[found.matrices[0]].shape[1])

    def _scale(self, result: Module, found: ScaledValue, factors: Tensor) -> None:
        if not (factors > 0).all() or not factors.isfinite().all():
            raise InputError(f"pass {self.name} returned factors that are not positive numbers")
        for names, scale in ((found.norm, 1 / factors), (found.matrices, factors)):
            for name in names:
                parameter = result.parameters[name]
                result.parameters[name] = replace(parameter, load=functools.partial(_scaled, parameter, scale))


def _scaled(parameter: Parameter, factors: Tensor) -> EncodedTensor:
    """The parameter with its columns times factors, in its float encoding."""
    return encode_float(parameter.values() * factors, parameter.encoding)


def scaled_values(module: Module, call: Node) -> list[ScaledValue]:
    """The norms' results of a call that are read only by float matrices without other uses."""
    function, bound = module.functions[call.attributes["function"]], call.attributes["parameters"]
    nodes = [node for node in function.nodes() if node.is_computed]
    result = []
    for norm in nodes:
        readers = [node for node in nodes if norm.name in node.inputs]
        if norm.op not in NORMS or norm.name in function.outputs or any(node.op != "linear" for node in readers):
            continue
        if norm.tensor.shape != function.node(norm.inputs[0]).tensor.shape:
            continue
        slots = [node.inputs[1] for node in readers]
        own = [slot for slot in norm.inputs[1:] if slot in bound]
        names = [bound[slot] for slot in (*slots, *own)]
        if slots and own and all(_is_free(module, name) for name in names):
            result.append(_scaled_value(norm, readers[0], bound, own, slots))
    return result


def _scaled_value(
    norm: Node, reader: Node, bound: dict[str, str], own: Sequence[str], slots: Sequence[str]
) -> ScaledValue:
    return ScaledValue(norm.name, reader.name, tuple(bound[s] for s in own), tuple(bound[s] for s in slots))


def _is_free(module: Module, name: str) -> bool:
    return module.parameters[name].encoding.is_float and len(module.uses(name)) == 1
