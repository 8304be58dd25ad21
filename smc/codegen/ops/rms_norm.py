"""rms_norm: rows divided by their root mean square, times a weight per column."""

from __future__ import annotations

from smc.codegen.kernels.specs import RmsNormKernel
from smc.codegen.ops.registry import Lowering, lowers
from smc.codegen.plan.arguments import Activation, Number, Stride, TokenCount, Vector
from smc.codegen.plan.domains import Tokens
from smc.codegen.plan.lowering import FunctionLowering, outputs
from smc.errors import InputError
from smc.ir import Node


@lowers("rms_norm")
class RmsNorm(Lowering):
    """A kernel has whole rows, so it can round its result in any form."""

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """Results in all forms that readers want."""
        source, weight, width = f.buffer(node.inputs[0]), node.inputs[1], node.tensor.shape[1]
        if not isinstance(width, int):
            raise InputError(f"there is no kernel yet for a norm of a width that layers differ in ({node.name})")
        if node.attributes["residual"]:
            raise InputError(f"there is no kernel yet for a norm with a residual ({node.name})")
        if f.function.node(weight).tensor.shape != (width,):
            raise InputError(f"there is no kernel yet for a norm of single heads ({node.name})")
        results = f.results(node, lambda form: True)
        f.add(
            node.name,
            "rms_norm",
            RmsNormKernel(tuple(buffer.form for buffer in results)),
            Tokens(),
            {
                "x": Activation(source),
                "weight": Vector(weight),
                **outputs(results),
                "tokens": TokenCount(),
                "width": Number(width),
                "stride": Stride(results[0]),
                "eps": Number(float(node.attributes["eps"])),
            },
            reads=(source,),
            writes=results,
            slots=(weight,),
            repeatable=True,
            work=lambda sizes: sizes.vector(weight),
        )
