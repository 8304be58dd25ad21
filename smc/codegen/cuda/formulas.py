"""Activations as C: the formula of smc/ir/activations.py, run on names of C variables."""

from __future__ import annotations

from dataclasses import dataclass

from smc.codegen.c_literals import c_float
from smc.codegen.kernels.specs import GATED
from smc.ir.activations import ACTIVATIONS


@dataclass(frozen=True)
class Value:
    """A variable, or a constant, of a C function under construction."""

    c: C
    text: str

    def __add__(self, other: Value) -> Value:
        return self.c.call("smc_add", self, other)

    def __sub__(self, other: Value) -> Value:
        return self.c.call("smc_sub", self, other)

    def __mul__(self, other: Value) -> Value:
        return self.c.call("smc_mul", self, other)

    def __truediv__(self, other: Value) -> Value:
        return self.c.call("smc_div", self, other)


class C:
    """`smc.ir.activations.Arithmetic` that writes every operation as a line of C."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def call(self, function: str, *arguments: Value) -> Value:
        """A new variable: the function's result."""
        name = f"v{len(self.lines)}"
        self.lines.append(f"const float {name} = {function}({', '.join(a.text for a in arguments)});")
        return Value(self, name)

    def constant(self, value: float) -> Value:
        """A number."""
        return Value(self, c_float(value))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        return self.call("smc_fma", a, b, c)

    def maximum(self, a: Value, b: Value) -> Value:
        """The larger one."""
        return self.call("smc_max", a, b)

    def absolute(self, x: Value) -> Value:
        """|x|."""
        return self.call("smc_abs", x)

    def exp(self, x: Value) -> Value:
        """As device/math.cuh has it."""
        return self.call("smc_exp", x)

    def tanh(self, x: Value) -> Value:
        """As device/math.cuh has it."""
        return self.call("smc_tanh", x)


def elementwise_lines(op: str, operands: str, numbers: tuple[str, ...]) -> list[str]:
    """C that returns an element-wise op's result of the floats named `operands` and `numbers`."""
    c = C()
    value, *others = [Value(c, name) for name in operands]
    if activation := ACTIVATIONS.get(op.removeprefix(GATED)):
        value = activation.formula(c, value)
    elif op == "softcap":
        value = c.call("smc_softcap", value, *(Value(c, name) for name in numbers))
    for other in others:
        value = value + other if op == "add" else value * other
    return [*c.lines, f"return {value.text};"]
