"""Inputs brought into the order and the basis that a matrix is stored in (docs/numerics.md, "Transformed inputs")."""

from __future__ import annotations

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Kernel, cast, const, rounded_product, shuffle, vector_constant
from smc.codegen.kernels.specs import TransformKernel
from smc.targets import CpuLevel

LANES = 16


def transform_kernel(name: str, spec: TransformKernel, level: CpuLevel) -> Kernel:
    """The tokens begin…end.

    x, out: float32 [tokens, stride], the padding beyond `columns` 0. order: int32 [stride], the column of x for every
    place, read if `permuted`. rotation: the size of the blocks (a power of two that divides the columns) which are
    multiplied by a Hadamard matrix in natural order over its root.
    """
    k, rotation = Kernel(name, spec.signature()), spec.rotation
    x, order, out = k.pointer("x"), k.pointer("order"), k.pointer("out")
    columns, stride = k.scalar("columns"), k.scalar("stride")
    begin, end = k.scalar("begin"), k.scalar("end")
    stride64 = k.let(cast(stride, "int64"), "stride")
    with k.loop(end - begin, "token", begin=begin) as t:
        start = k.let(cast(t, "int64") * stride64, "start")
        with k.loop(stride64 >> const(4, "int64"), "vector") as v:
            place = k.let(v * LANES, "place")
            # Vectors of indices are loaded one by one.
            index = cast(order.load(place, LANES), f"int64x{LANES}") if spec.permuted else None
            value = x.load(start + place, LANES) if index is None else x.load(tirx.Broadcast(start, LANES) + index)
            value = k.let(value, "value")
            if rotation is not None:
                root = const(rotation**-0.5, f"float32x{LANES}")
                value = butterflies(k, rounded_product(value, root), rotation)
            k.store(out, start + place, value)
        for half in (LANES << i for i in range(32) if rotation is not None and LANES << i < rotation):
            with k.loop(columns // const(2 * half, "int32"), "block") as block, k.loop(half // LANES, "vector") as v:
                low = k.let(start + cast(block, "int64") * (2 * half) + cast(v, "int64") * LANES, "low")
                first, second = k.let(out.load(low, LANES)), k.let(out.load(low + half, LANES))
                k.store(out, low, first + second)
                k.store(out, low + half, first - second)
    return k


def butterflies(k: Kernel, value: Expr, block: int) -> Expr:
    """A vector of 16 columns after the steps of a Hadamard transform in it, in blocks of `block` columns or more."""
    value = k.let(value, "value")
    for half in (h for h in (1, 2, 4, 8) if h < block):
        value = k.let(_sums_and_differences(value, half), "value")
    return value


def _sums_and_differences(value: Expr, half: int) -> Expr:
    """Lanes i and i + half become their sum and their difference."""
    first = shuffle(value, [lane & ~half for lane in range(LANES)])
    second = shuffle(value, [lane | half for lane in range(LANES)])
    signs = vector_constant([-1.0 if lane & half else 1.0 for lane in range(LANES)], "float32")
    return first + second * signs
