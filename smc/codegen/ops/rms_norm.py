"""rms_norm: rows divided by their root mean square, times a weight per column; or single heads."""

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
    """A kernel has whole rows, so it can round its result in any form. Heads are normed by attention, as it reads."""

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """Results in all forms that readers need."""
        source, weight, width = f.buffer(node.inputs[0]), node.inputs[1], node.tensor.shape[1]
        if not isinstance(width, int):
            raise InputError(f"there is no kernel yet for a norm of a width that layers differ in ({node.name})")
        if self._is_of_heads(f, node):
            f.alias(node.name, source)
            f.head_norms[node.name] = node
            return
        if f.function.node(weight).tensor.shape != (width,):
            raise InputError(f"{node.name}: normed heads must have no other reader than attention")
        residual = [f.buffer(node.inputs[2])] if node.attributes["residual"] else []
        results = f.results(node, lambda form: True)
        f.add(
            node.name,
            "rms_norm",
            RmsNormKernel(tuple(buffer.form for buffer in results), bool(residual)),
            Tokens(),
            {
                "x": Activation(source),
                "weight": Vector(weight),
                **dict(zip(["residual"], map(Activation, residual), strict=False)),
                **outputs(results),
                "tokens": TokenCount(),
                "width": Number(width),
                "stride": Stride(results[0]),
                "eps": Number(float(node.attributes["eps"])),
            },
            reads=(source, *residual),
            writes=results,
            slots=(weight,),
            repeatable=True,
            work=lambda sizes: sizes.vector(weight),
        )

    def _is_of_heads(self, f: FunctionLowering, node: Node) -> bool:
        """Whether it normalizes the heads of q or k for attention alone: then attention does it."""
        readers = f.function.users(node.name)
        if len(readers) != 1 or len(f.function.users(node.inputs[0])) != 1 or node.name in f.function.outputs:
            return False
        [reader] = readers
        columns = f.function.node(node.inputs[1]).tensor.shape[0]
        turned = node.name in reader.inputs[:2] and reader.attributes.get("head_dim") == columns
        return turned and not node.attributes["residual"]
