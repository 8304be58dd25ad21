"""embedding: rows of a table, decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from smc.codegen.kernels.abi import Form
from smc.codegen.kernels.specs import EmbeddingKernel
from smc.codegen.ops.registry import Lowering, lowers
from smc.codegen.plan.arguments import Activation, Number, StepField, Stride, Weight, WeightSize
from smc.codegen.plan.domains import Tokens
from smc.codegen.plan.lowering import FunctionLowering
from smc.codegen.plan.plan import BySlot
from smc.errors import InputError
from smc.ir import Node, Parameter


@lowers("embedding")
class Embedding(Lowering):
    """A kernel per encoding of the table."""

    def input_forms(self, node: Node, parameter: Callable[[str], Parameter]) -> Mapping[int, Form]:
        """Token ids are no activations. A table whose columns are moved or rotated can't be looked up."""
        _, table = node.inputs
        found = parameter(table)
        if found.encoding.transform.permuted or found.encoding.transform.rotation:
            raise InputError(
                f"{found.name} is {found.encoding}, which no embedding can be: the pass untie gives the head"
                " a matrix of its own"
            )
        return {}

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """The ids, or the positions, are those of the step."""
        ids, table = node.inputs
        out = f.new_buffer(node.name, node.tensor.shape[1])
        f.add(
            node.name,
            "embedding",
            BySlot(EmbeddingKernel, table),
            Tokens(),
            {
                "tokens": StepField("positions" if ids == "positions" else "tokens"),
                "codes": Weight(table, "codes"),
                "scales": Weight(table, "scales"),
                "zeros": Weight(table, "zeros"),
                "out": Activation(out),
                "rows": WeightSize(table, "rows"),
                "columns": WeightSize(table, "columns"),
                "stride": Stride(out),
                "scale": Number(float(node.attributes["scale"])),
            },
            writes=(out,),
            slots=(table,),
            work=lambda sizes: sizes.looked_up(table),
        )
