"""layer_norm: rows less their mean, divided by their deviation, times a weight per column, plus a bias."""

from __future__ import annotations

from smc.codegen.kernels.specs import LayerNormKernel
from smc.codegen.ops.registry import Lowering, lowers
from smc.codegen.plan.arguments import Activation, Number, Stride, TokenCount, Vector
from smc.codegen.plan.domains import Tokens
from smc.codegen.plan.lowering import FunctionLowering, outputs
from smc.errors import InputError
from smc.ir import Node


@lowers("layer_norm")
class LayerNorm(Lowering):
    """A kernel has whole rows, so it can round its result in any form."""

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """Results in all forms that readers need."""
        source, weight, bias = f.buffer(node.inputs[0]), node.inputs[1], node.argument("bias")
        width = node.tensor.shape[1]
        if not isinstance(width, int):
            raise InputError(f"there is no kernel yet for a norm of a width that layers differ in ({node.name})")
        results = f.results(node, lambda form: True)
        f.add(
            node.name,
            "layer_norm",
            LayerNormKernel(tuple(buffer.form for buffer in results), bias is not None),
            Tokens(),
            {
                "x": Activation(source),
                "weight": Vector(weight),
                **({"bias": Vector(bias)} if bias else {}),
                **outputs(results),
                "tokens": TokenCount(),
                "width": Number(width),
                "stride": Stride(results[0]),
                "eps": Number(float(node.attributes["eps"])),
            },
            reads=(source,),
            writes=results,
            slots=(weight, *([bias] if bias else [])),
            repeatable=True,
            work=lambda sizes: sizes.vector(weight),
        )
