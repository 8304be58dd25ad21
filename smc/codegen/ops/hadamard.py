"""hadamard: blocks of columns times a Hadamard matrix."""

from __future__ import annotations

from smc.codegen.kernels.specs import TransformKernel
from smc.codegen.ops.registry import Lowering, lowers
from smc.codegen.plan.arguments import Activation, Null, Number, Stride
from smc.codegen.plan.domains import Tokens
from smc.codegen.plan.lowering import FunctionLowering
from smc.errors import InputError
from smc.ir import Node


@lowers("hadamard")
class Hadamard(Lowering):
    """The kernel that brings the inputs of rotated matrices into their basis."""

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """The result in floats."""
        source, width = f.buffer(node.inputs[0]), node.tensor.shape[1]
        if not isinstance(width, int):
            raise InputError(f"there is no kernel yet for a hadamard of a width that layers differ in ({node.name})")
        out = f.new_buffer(node.name, width)
        f.add(
            node.name,
            "transform",
            TransformKernel(False, int(node.attributes["block"])),
            Tokens(),
            {
                "x": Activation(source),
                "order": Null(),
                "out": Activation(out),
                "columns": Number(width),
                "stride": Stride(source),
            },
            reads=(source,),
            writes=(out,),
        )
