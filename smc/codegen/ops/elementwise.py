"""Element-wise ops: silu, mul, add and gated_activation."""

from __future__ import annotations

from smc.codegen.kernels.specs import ElementwiseKernel
from smc.codegen.ops.registry import Lowering, lowers
from smc.codegen.plan.arguments import Activation, Stride, TokenCount
from smc.codegen.plan.domains import Columns
from smc.codegen.plan.lowering import TILE_GROUP, FunctionLowering, outputs
from smc.errors import InputError
from smc.ir import Node

GATED = {"silu": "gated_silu"}
"""The kernel of a gated activation by the activation's name."""


@lowers("silu", kernel="silu")
@lowers("mul", kernel="mul")
@lowers("add", kernel="add")
class Elementwise(Lowering):
    """A kernel takes any tiles of 32 columns: it rounds its result where so many share a scale."""

    def __init__(self, kernel: str = "") -> None:
        self.kernel = kernel

    def kernel_of(self, node: Node) -> str:
        """The kernel's name; InputError where there is none."""
        return self.kernel

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """Results in floats, or in codes that any tile has for itself."""
        kernel = self.kernel_of(node)
        sources = tuple(f.buffer(value) for value in node.inputs)
        results = f.results(node, lambda form: form.group == TILE_GROUP)
        f.add(
            node.name,
            kernel,
            ElementwiseKernel(kernel, tuple(buffer.form for buffer in results)),
            Columns(results[0]),
            {
                **{name: Activation(source) for name, source in zip("ab", sources, strict=False)},
                **outputs(results),
                "tokens": TokenCount(),
                "stride": Stride(results[0]),
            },
            reads=sources,
            writes=results,
        )


@lowers("gated_activation")
class GatedActivation(Elementwise):
    """activation(gate) * up."""

    def kernel_of(self, node: Node) -> str:
        """By the activation."""
        activation = node.attributes["activation"]
        if activation not in GATED:
            raise InputError(f"there is no kernel for the activation {activation} yet")
        return GATED[activation]
