"""A function of the ir while an architecture writes it, with the views that fill its slots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from smc.frontend.architectures.views import Source, Transform
from smc.ir import Function, TensorType
from smc.ir.types import Dim


@dataclass(frozen=True)
class Width:
    """A dim that may differ from layer to layer: a symbol in the function, a number in each call."""

    symbol: str
    size: int


@dataclass
class Block:
    """One call of `main`: a function, and what of the checkpoint fills its slots.

    prefix: of the tensors' names, up to the last dot ("model.layers.3."). sizes: what the symbols of slots stand for.
    """

    function: Function
    prefix: str = ""
    sources: dict[str, Source] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def layer(cls, prefix: str, hidden_size: int) -> Block:
        """A layer: block(x f32[n, hidden_size], positions i32[n])."""
        function = Function("block")
        function.input("x", TensorType(("n", hidden_size)))
        function.input("positions", TensorType(("n",), "i32"))
        return cls(function, prefix)

    def add(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node; see `Function.add`."""
        return self.function.add(op, *inputs, name=name, **attributes)

    def parameter(
        self,
        path: str,
        *shape: int | Width,
        role: str,
        slot: str | None = None,
        source: Source | None = None,
        transform: Transform | None = None,
    ) -> str:
        """Declare a slot, filled by the tensor at prefix + path, transformed, or by another `source`; returns its name.

        slot: its name; without, the path's last part but `.weight` ("q_proj", "q_proj.bias").
        """
        parts = path.removesuffix(".weight").split(".")
        name = slot or ".".join(parts[-2:] if parts[-1] == "bias" else parts[-1:])
        self.sources[name] = source or Source(self.prefix + path, transform=transform)
        self.sizes.update({d.symbol: d.size for d in shape if isinstance(d, Width)})
        dims: list[Dim] = [d.symbol if isinstance(d, Width) else d for d in shape]
        return self.function.parameter(name, *dims, role=role)

    def linear(
        self,
        x: str,
        path: str,
        rows: int | Width,
        columns: int | Width,
        *,
        role: str,
        bias: bool = False,
        name: str | None = None,
        slot: str | None = None,
        part: range | None = None,
        transform: Transform | None = None,
    ) -> str:
        """A product with the matrix [rows, columns] at prefix + path + ".weight", and its bias if it has one.

        part: only these rows of the stored tensors (one matrix for several products). transform: of matrix and bias.
        """
        slot = slot or path.split(".")[-1]
        sources = [Source(f"{self.prefix}{path}.{kind}", part, None, transform) for kind in ("weight", "bias")]
        weights = [self.parameter(path, rows, columns, role=role, slot=slot, source=sources[0])]
        if bias:
            weights.append(self.parameter(path, rows, role="bias", slot=f"{slot}.bias", source=sources[1]))
        return self.add("linear", x, *weights, name=name, bias=bias)

    def finish(self, *outputs: str) -> Block:
        """Declare the result."""
        self.function.set_outputs(*outputs)
        return self
