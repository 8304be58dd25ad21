"""Signature: a kernel's C parameters, declared once by its spec; its builder and its callers take them by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

DTYPES = {"float": "float32", "int8_t": "int8", "uint8_t": "uint8", "int32_t": "int32", "int64_t": "int64"}
"""C's numbers as numpy and TIR call them."""


@dataclass(frozen=True)
class Parameter:
    """One parameter: `type` is that of its number, or of what it points to ("float", "struct smc_tile")."""

    name: str
    type: str
    pointer: bool = False
    const: bool = False

    @property
    def declaration(self) -> str:
        """As C declares it: "const float *x"."""
        return f"{'const ' if self.const else ''}{self.type} {'*' if self.pointer else ''}{self.name}"

    @property
    def dtype(self) -> str | None:
        """The dtype of a number, or of the elements that it points to; None for a struct."""
        return DTYPES.get(self.type)

    @property
    def is_raw(self) -> bool:
        """Whether a kernel may see other elements than the type says: bytes are packed, structs have fields."""
        return self.pointer and self.type not in ("float", "int32_t", "int64_t")


def _parse(declaration: str) -> Parameter:
    kind, _, name = declaration.rpartition(" ")
    bare = kind.removeprefix("const ")
    assert bare in DTYPES or bare.startswith("struct "), declaration
    return Parameter(name.lstrip("*"), bare, name.startswith("*"), kind != bare)


@dataclass(frozen=True)
class Signature:
    """The parameters of a kernel `int32_t name(…)` in C order. Pointers without const are written, others only read."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, *declarations: str) -> Signature:
        """From C declarations, each of one parameter, such as "const float *x" and "int32_t begin"."""
        return cls(tuple(map(_parse, declarations)))

    @cached_property
    def by_name(self) -> Mapping[str, Parameter]:
        """All parameters by their names."""
        return {parameter.name: parameter for parameter in self.parameters}

    def __str__(self) -> str:
        """The C parameter list."""
        return ", ".join(parameter.declaration for parameter in self.parameters)

    def arguments(self, expressions: Mapping[str, str]) -> str:
        """The C argument list of a call: an expression for each parameter, by name, and none for any other name.

        That an expression has its parameter's type is for the C compiler to check. KeyError names what does not fit.
        """
        missing, unknown = self.by_name.keys() - expressions.keys(), expressions.keys() - self.by_name.keys()
        if missing or unknown:
            raise KeyError(f"arguments missing: {sorted(missing)}, unknown: {sorted(unknown)} of ({self})")
        return ", ".join(expressions[parameter.name] for parameter in self.parameters)
