"""The pass `activations`: how the inputs of quantized matrices are rounded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from smc.ir import EncodedTensor, Encoding, Module, Parameter
from smc.ir.encoding import Activations
from smc.passes.base import Context, Pass
from smc.passes.matrices import pick_matrices
from smc.passes.registry import register


@register("activations")
@dataclass(frozen=True)
class ChangeActivations(Pass):
    """Round the inputs of quantized matrices to int8, which is faster, or leave them floats, which is more accurate.

    inputs: int8 (groups of 32 share a scale) or float. include, exclude: glob patterns on parameter names, slots and
    roles (model.layers.0.*, v_proj, value). A codebook off the int8 grid keeps float inputs.
    """

    inputs: Literal["int8", "float"] = "float"
    include: tuple[str, ...] = field(default=("*",), kw_only=True)
    exclude: tuple[str, ...] = field(default=(), kw_only=True)

    def run(self, module: Module, context: Context) -> Module:
        """Change the encodings; codes and scales stay."""
        result, rounds = module.copy(), self.inputs == "int8"
        changed = [
            p
            for p in pick_matrices(module, self.include, self.exclude)
            if not p.encoding.is_float
            and p.encoding.rounds_inputs != rounds
            and (p.encoding.has_integer_codebook or not p.encoding.has_codebook)
        ]
        for parameter in changed:
            encoding = replace(parameter.encoding, activations=Activations() if rounds else None)
            result.parameters[parameter.name] = _changed(parameter, encoding)
        context.report(f"{len(changed)} matrices with {self.inputs} inputs")
        return result


def _changed(parameter: Parameter, encoding: Encoding) -> Parameter:
    def load() -> EncodedTensor:
        return replace(parameter.load(), encoding=encoding)

    return replace(parameter, encoding=encoding, load=load)
