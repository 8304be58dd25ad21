"""head_layer_norm: single heads less their mean, divided by their deviation, times weights of their own."""

from __future__ import annotations

from smc.codegen.kernels.specs import HeadLayerNormKernel
from smc.codegen.ops.registry import Lowering, lowers
from smc.codegen.plan.arguments import Activation, Number, Stride, TokenCount, Vector
from smc.codegen.plan.domains import Tokens
from smc.codegen.plan.lowering import FunctionLowering
from smc.ir import Node


@lowers("head_layer_norm")
class HeadLayerNorm(Lowering):
    """Floats in, floats out: attention reads them."""

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """One kernel, for whole rows."""
        source, weight, width = f.buffer(node.inputs[0]), node.inputs[1], node.tensor.shape[1]
        assert isinstance(width, int)
        out, head_dim = f.new_buffer(node.name, width), int(node.attributes["head_dim"])
        f.add(
            node.name,
            "head_layer_norm",
            HeadLayerNormKernel(head_dim),
            Tokens(),
            {
                "x": Activation(source),
                "weight": Vector(weight),
                "out": Activation(out),
                "tokens": TokenCount(),
                "heads": Number(width // head_dim),
                "stride": Stride(out),
                "eps": Number(float(node.attributes["eps"])),
            },
            reads=(source,),
            writes=(out,),
            slots=(weight,),
            repeatable=True,
            work=lambda sizes: sizes.vector(weight),
        )
