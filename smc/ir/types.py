"""Types of ir values: shape, dtype and, for parameters, the encoding."""

from __future__ import annotations

from dataclasses import dataclass

from smc.ir.encoding import Encoding

Dim = int | str
"""A dimension: a number, or the name of a symbol ("n" tokens, "ffn" where layers differ)."""


@dataclass(frozen=True)
class TensorType:
    """Shape, element dtype ("f32" or "i32") and encoding; None: not yet known (a parameter slot takes any)."""

    shape: tuple[Dim, ...]
    dtype: str = "f32"
    encoding: Encoding | None = None

    def __str__(self) -> str:
        text = f"{self.dtype}[{', '.join(str(d) for d in self.shape)}]"
        return text if self.encoding is None else f"{text} {self.encoding}"


@dataclass(frozen=True)
class TupleType:
    """The type of an op with several results; `project` picks one."""

    items: tuple[TensorType, ...]

    def __str__(self) -> str:
        return f"({', '.join(str(item) for item in self.items)})"


Type = TensorType | TupleType
