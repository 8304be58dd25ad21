"""Work: what a kernel reads, writes and multiplies, which profiles turn into GB/s and GMAC/s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smc.codegen.kernels.abi import Form
from smc.codegen.kernels.layout import MatrixLayout, padded
from smc.codegen.plan.arguments import KvShape
from smc.ir import Module, Parameter, matrix_shape, stack_shape
from smc.ir.types import Dim

WIDTH_MULTIPLE = 32
"""Rows of activations are padded to this many floats."""


def padded_width(width: int) -> int:
    """Floats of an activation row."""
    return padded(width, WIDTH_MULTIPLE)


@dataclass(frozen=True)
class Work:
    """The work of one call in a step of n tokens; a sum is that of several calls.

    weight_bytes: read once per step. token_bytes, token_macs: per token, activations and multiply-adds. cache_reads:
    elements of the KV cache per cached token that a tile of tokens attends to; cache_macs: multiply-adds per pair of a
    token and a cached token that it attends to; cache_writes: elements per token. cache: whose K and V.
    chosen_bytes: weights of the experts that a token chooses; expert_bytes: of all of them, once per step at most.
    integer: the multiply-adds are of int8. encodings: of the matrices, as text.
    """

    weight_bytes: int = 0
    token_bytes: int = 0
    token_macs: int = 0
    cache_reads: int = 0
    cache_macs: int = 0
    cache_writes: int = 0
    chosen_bytes: int = 0
    expert_bytes: int = 0
    cache: KvShape | None = None
    integer: bool = False
    encodings: tuple[str, ...] = ()

    def __add__(self, other: Work) -> Work:
        return Work(
            self.weight_bytes + other.weight_bytes,
            self.token_bytes + other.token_bytes,
            self.token_macs + other.token_macs,
            self.cache_reads + other.cache_reads,
            self.cache_macs + other.cache_macs,
            self.cache_writes + other.cache_writes,
            self.chosen_bytes + other.chosen_bytes,
            self.expert_bytes + other.expert_bytes,
            self.cache or other.cache,
            self.integer or other.integer,
            tuple(dict.fromkeys((*self.encodings, *other.encodings))),
        )


NO_WORK = Work()


@dataclass(frozen=True)
class CallSizes:
    """The sizes that one call of a function has: its parameters by slot, and its dims by symbol."""

    module: Module
    slots: Mapping[str, str]
    symbols: Mapping[str, int]

    def parameter(self, slot: str) -> Parameter:
        """The parameter in a slot."""
        return self.module.parameters[self.slots[slot]]

    def width(self, dim: Dim) -> int:
        """The padded width of activations."""
        return padded_width(self.symbols[dim] if isinstance(dim, str) else dim)

    def vector(self, slot: str) -> Work:
        """Reading the vector in a slot."""
        return Work(weight_bytes=4 * padded_width(self.parameter(slot).shape[0]))

    def multiplied(self, slot: str, form: Form) -> Work:
        """Multiplying inputs in a form by the matrix in a slot."""
        parameter = self.parameter(slot)
        rows, columns = matrix_shape(parameter.shape)
        return Work(
            weight_bytes=MatrixLayout(parameter.encoding, rows, columns).total_bytes,
            token_macs=rows * columns,
            integer=not form.is_float,
            encodings=(str(parameter.encoding),),
        )

    def chosen(self, slot: str, form: Form, count: int) -> Work:
        """Multiplying a token's inputs in a form by so many of the matrices in a slot."""
        parameter = self.parameter(slot)
        experts, rows, columns = stack_shape(parameter.shape)
        each = MatrixLayout(parameter.encoding, rows, columns).total_bytes
        return Work(
            chosen_bytes=count * each,
            expert_bytes=experts * each,
            token_macs=count * rows * columns,
            integer=not form.is_float,
            encodings=(str(parameter.encoding),),
        )

    def looked_up(self, slot: str) -> Work:
        """Reading a row of the matrix in a slot for every token."""
        parameter = self.parameter(slot)
        rows, columns = matrix_shape(parameter.shape)
        total = MatrixLayout(parameter.encoding, rows, columns).total_bytes
        return Work(token_bytes=total // rows, encodings=(str(parameter.encoding),))

    def activations(self, form: Form, dim: Dim) -> int:
        """Bytes of a token's activations: values, or codes with their scales and sums."""
        return form_bytes(form, self.width(dim))


def form_bytes(form: Form, width: int) -> int:
    """Bytes of one token's activations of so many columns: values, or codes with their scales and sums."""
    if not form.has_scales:
        return 4 * width
    scales = 1 if form.group == "token" else width // 32
    return width + 4 * scales + 4 * width // form.sum_group
