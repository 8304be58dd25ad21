"""Element-wise ops: mul, add, activations alone and gated, soft-caps."""

from __future__ import annotations

from smc.codegen.kernels.specs import GATED, ElementwiseKernel
from smc.codegen.ops.registry import Lowering, lowers
from smc.codegen.plan.arguments import Activation, Argument, Number, Stride, TokenCount
from smc.codegen.plan.lowering import TILE_GROUP, FunctionLowering, columns, outputs
from smc.ir import Node
from smc.ir.activations import ACTIVATIONS
from smc.ir.ops.registry import OPS


@lowers("mul", kernel="mul")
@lowers("add", kernel="add")
class Elementwise(Lowering):
    """A kernel takes any tiles of 32 columns: it rounds its result where so many share a scale."""

    def __init__(self, kernel: str = "") -> None:
        self.kernel = kernel

    def kernel_of(self, node: Node) -> str:
        """The kernel's name."""
        return self.kernel

    def numbers(self, node: Node) -> dict[str, Argument]:
        """Further arguments of the kernel."""
        return {}

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """Results in floats, or in codes that any tile has for itself."""
        kernel, numbers = self.kernel_of(node), self.numbers(node)
        sources = tuple(f.buffer(value) for value in node.inputs)
        results = f.results(node, lambda form: form.group == TILE_GROUP, sources[0].routing)
        f.add(
            node.name,
            kernel,
            ElementwiseKernel(kernel, tuple(buffer.form for buffer in results), numbers=tuple(numbers)),
            columns(results[0]),
            {
                **{name: Activation(source) for name, source in zip("ab", sources, strict=False)},
                **outputs(results),
                "tokens": TokenCount(),
                "stride": Stride(results[0]),
                **numbers,
            },
            reads=sources,
            writes=results,
            increasing=OPS[node.op].increasing,
        )


for _activation in ACTIVATIONS:
    lowers(_activation, kernel=_activation)(Elementwise)


@lowers("softcap", kernel="softcap")
class Softcap(Elementwise):
    """cap * tanh(x / cap)."""

    def numbers(self, node: Node) -> dict[str, Argument]:
        """The cap, which is a number of the node."""
        return {"cap": Number(float(node.attributes["cap"]))}


@lowers("gated_activation")
class GatedActivation(Elementwise):
    """activation(gate) * up."""

    def kernel_of(self, node: Node) -> str:
        """By the activation."""
        return f"{GATED}{node.attributes['activation']}"
