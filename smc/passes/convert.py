"""The pass `convert`: matrices as plain floats."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from smc.errors import InputError
from smc.ir import BF16, F16, F32, EncodedTensor, Encoding, Module, Parameter, encode_float
from smc.passes.base import Context, Pass
from smc.passes.matrices import pick_matrices
from smc.passes.registry import register


@register("convert")
@dataclass(frozen=True)
class Convert(Pass):
    """Store matrices as plain floats, rounded to nearest even; quantized ones are decoded.

    dtype: f32, f16 or bf16. include, exclude: glob patterns on parameter names, slots and roles (model.layers.0.*,
    v_proj, value).
    """

    dtype: Literal["f32", "f16", "bf16"] = "f16"
    include: tuple[str, ...] = field(default=("*",), kw_only=True)
    exclude: tuple[str, ...] = field(default=(), kw_only=True)

    def run(self, module: Module, context: Context) -> Module:
        """Wrap the `load` of every selected parameter."""
        result, target = module.copy(), {str(e): e for e in (F32, F16, BF16)}[self.dtype]
        changed = [p for p in pick_matrices(module, self.include, self.exclude) if p.encoding != target]
        for parameter in changed:
            result.parameters[parameter.name] = _converted(parameter, target)
        context.report(f"{len(changed)} matrices to {self.dtype}")
        return result


def _converted(parameter: Parameter, target: Encoding) -> Parameter:
    def load() -> EncodedTensor:
        values = parameter.values()
        try:
            return encode_float(values, target)
        except InputError as error:
            raise InputError(f"{parameter.name}: {error}") from error

    return replace(parameter, encoding=target, load=load)
