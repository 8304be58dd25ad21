"""rope: positions, as rotations of pairs of channels."""

from __future__ import annotations

from smc.codegen.ops.registry import Lowering, lowers
from smc.codegen.plan.lowering import FunctionLowering
from smc.errors import InputError
from smc.ir import Node, RopeTable


@lowers("rope")
class Rope(Lowering):
    """No kernel of its own: who reads the result rotates it, the write of k into the cache, and attention."""

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """Remember the rotation."""
        source, attributes = node.inputs[0], node.attributes
        if len(f.function.users(source)) > 1 or len(f.function.users(node.name)) > 1:
            raise InputError(f"{node.name}: rotated q and k must have no other reader than attention")
        f.alias(node.name, f.unturned(source))
        table: RopeTable = attributes["table"]
        f.rotations[node.name] = table
        if source in f.head_norms:
            f.head_norms[node.name] = f.head_norms[source]
