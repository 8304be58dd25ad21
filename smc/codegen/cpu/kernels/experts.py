"""Mixtures of experts: the router's choice, rows on their way to the experts and back."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Kernel, Pointer, Register, broadcast, cast, const, fma
from smc.codegen.cpu.kernels.rows import rows_together, tile_of_rows
from smc.codegen.cpu.kernels.sink import Sink
from smc.codegen.cpu.kernels.vector_math import LANES, add, exp, horizontal
from smc.codegen.kernels.layout import padded
from smc.codegen.kernels.specs import CombineKernel, DispatchKernel, RouteKernel
from smc.codegen.plan.work import padded_width
from smc.ir import ceil_div
from smc.targets import CpuLevel

VECTOR = f"float32x{LANES}"
GROUP_NUMBERS = 3
"""What `groups` has per chosen expert: its number, its first row, the number of its rows."""


def route_kernel(name: str, spec: RouteKernel, level: CpuLevel) -> Kernel:
    """All tokens at once.

    logits: float32 [tokens, stride]. weights: float32 [tokens, `chosen`, padded], zeros in the padding. groups: int32
    [experts that tokens may choose at most, 3]: number, first row, rows; zeros behind those that are chosen. rows:
    int32 [tokens · chosen], the token of every row. places: int32 [tokens, chosen], the row of every choice.
    """
    k = Kernel(name, spec.signature())
    logits, weights = k.pointer("logits"), k.pointer("weights")
    groups, rows, places = (k.pointer(name) for name in ("groups", "rows", "places"))
    tokens, stride = k.scalar("tokens"), k.scalar("stride")
    counts = k.array("int32", padded(spec.experts, LANES), "counts")
    zeros = const(0, f"int32x{LANES}")
    for first in range(0, spec.experts, LANES):
        k.store(counts, first, zeros)
    with k.loop(tokens, "token") as token:
        start = k.let(cast(token, "int64") * cast(stride, "int64"), "start")
        values, experts = _largest(k, spec, logits, start)
        place = k.let(token * const(spec.chosen, "int32"), "place")
        for choice, expert in enumerate(experts):
            k.store(places, place + choice, expert.value)
            k.store(counts, expert.value, counts.load(expert.value) + const(1, "int32"))
        _weigh(k, spec, logits, start, values, weights, cast(token, "int64"))
    _share_out(k, spec, tokens, counts, groups)
    with k.loop(tokens * const(spec.chosen, "int32"), "choice") as choice:
        expert = k.let(places.load(choice), "expert")
        row = k.let(counts.load(expert), "row")
        k.store(counts, expert, row + const(1, "int32"))
        k.store(rows, row, choice // const(spec.chosen, "int32"))
        k.store(places, choice, row)
    return k


def _largest(
    k: Kernel, spec: RouteKernel, logits: Pointer, start: Expr
) -> tuple[Sequence[Register], Sequence[Register]]:
    """The largest logits of a row in descending order, and their experts; among equals the lower expert comes first."""
    lowest = const(float("-inf"), "float32")
    values = [k.register(lowest, "value") for _ in range(spec.chosen)]
    # Numbers of experts even where no logit is above the lowest.
    experts = [k.register(const(choice, "int32"), "expert") for choice in range(spec.chosen)]
    with k.loop(const(spec.experts, "int32"), "expert") as expert:
        x = k.let(logits.load(start + cast(expert, "int64")), "x")
        with k.when(x > values[-1].value):
            for choice in reversed(range(spec.chosen)):
                here, value, number = x > values[choice].value, x, expert
                if choice:
                    above = x > values[choice - 1].value
                    value = tirx.Select(above, values[choice - 1].value, x)
                    number = tirx.Select(above, experts[choice - 1].value, expert)
                k.set(experts[choice], tirx.Select(here, number, experts[choice].value))
                k.set(values[choice], tirx.Select(here, value, values[choice].value))
    return values, experts


def _weigh(
    k: Kernel,
    spec: RouteKernel,
    logits: Pointer,
    start: Expr,
    values: Sequence[Register],
    weights: Pointer,
    token: Expr,
) -> None:
    """A token's weights: exponentials of the differences to the largest logit, over their sum."""
    width = padded_width(spec.chosen)
    largest = k.let(values[0].value, "largest")
    spread = broadcast(largest, LANES)
    row = k.let(token * const(width, "int64"), "row")
    for choice in range(width):
        value = values[choice].value if choice < spec.chosen else largest
        k.store(weights, row + choice, value)
    vectors = []
    for first in range(0, width, LANES):
        power = exp(k, weights.load(row + first, LANES) - spread)
        vectors.append(k.let(_first(power, spec.chosen - first), "power"))
    total = k.register(const(0.0, VECTOR), "total")
    if spec.normalized:
        for vector in vectors[: ceil_div(spec.chosen, LANES)]:
            k.set(total, total.value + vector)
    else:
        for first in range(0, spec.experts, LANES):
            power = exp(k, logits.load(start + first, LANES) - spread)
            k.set(total, total.value + k.let(_first(power, spec.experts - first), "power"))
    divisor = broadcast(horizontal(k, total.value, add), LANES)
    for place, vector in enumerate(vectors):
        k.store(weights, row + place * LANES, vector / divisor)


def _first(vector: Expr, count: int) -> Expr:
    """The first `count` lanes, the others 0."""
    if count >= LANES:
        return vector
    if count <= 0:
        return const(0.0, VECTOR)
    lanes = tirx.Ramp(const(0, "int32"), const(1, "int32"), LANES)
    return tirx.Select(lanes < broadcast(const(count, "int32"), LANES), vector, const(0.0, VECTOR))


def _share_out(k: Kernel, spec: RouteKernel, tokens: Expr, counts: Pointer, groups: Pointer) -> None:
    """Write the groups, and replace each expert's count with its first row."""
    group, row = k.register(const(0, "int32"), "group"), k.register(const(0, "int32"), "row")
    with k.loop(const(spec.experts, "int32"), "expert") as expert:
        count = k.register(counts.load(expert), "count").value
        with k.when(count > const(0, "int32")):
            place = k.let(group.value * const(GROUP_NUMBERS, "int32"), "place")
            for index, value in enumerate((expert, row.value, count)):
                k.store(groups, place + index, value)
            k.set(group, group.value + const(1, "int32"))
        k.store(counts, expert, row.value)
        k.set(row, row.value + count)
    most = tirx.min(tokens * const(spec.chosen, "int32"), const(spec.experts, "int32"))
    used = k.let(group.value, "used")
    with k.loop((most - used) * const(GROUP_NUMBERS, "int32"), "rest") as rest:
        k.store(groups, used * const(GROUP_NUMBERS, "int32") + rest, const(0, "int32"))


def dispatch_kernel(name: str, spec: DispatchKernel, level: CpuLevel) -> Kernel:
    """Copies the rows begin…end: row i is the row rows[first + i] of x [·, stride]."""
    k = Kernel(name, spec.signature())
    x, rows = k.pointer("x"), k.pointer("rows")
    sink = Sink(k, level, spec.forms)
    first, stride, begin, end = (k.scalar(name) for name in ("first", "stride", "begin", "end"))
    stride64 = k.let(cast(stride, "int64"), "stride")
    tiles = k.let(stride64 >> const(5, "int64"), "tiles")
    for places in rows_together(k, level, begin, end):
        tokens = [k.let(cast(rows.load(cast(first, "int64") + place), "int64"), "token") for place in places]
        load = functools.partial(tile_of_rows, k, x, [k.let(token * stride64, "start") for token in tokens])
        sink.store(places, stride64, const(0, "int64"), tiles, load)
    return k


def combine_kernel(name: str, spec: CombineKernel, level: CpuLevel) -> Kernel:
    """For the tokens begin…end: out [·, stride] = Σ weights [·, weights_stride] · rows of x [·, stride], which `places`
    [·, chosen] names. The sum begins with 0 and has one fma per choice, in order; the residual [·, stride] comes
    last."""
    k = Kernel(name, spec.signature())
    x, weights, places, out = (k.pointer(name) for name in ("x", "weights", "places", "out"))
    residual = k.pointer("residual") if spec.residual else None
    weights_stride, stride = k.scalar("weights_stride"), k.scalar("stride")
    begin, end = k.scalar("begin"), k.scalar("end")
    stride64 = k.let(cast(stride, "int64"), "stride")
    with k.loop(end - begin, "token", begin=begin) as token:
        first = k.let(token * const(spec.chosen, "int32"), "first")
        own = k.let(cast(token, "int64") * cast(weights_stride, "int64"), "own")
        rows = [k.let(cast(places.load(first + c), "int64") * stride64, "row") for c in range(spec.chosen)]
        factors = [k.let(broadcast(weights.load(own + c), LANES), "factor") for c in range(spec.chosen)]
        target = k.let(cast(token, "int64") * stride64, "target")
        with k.loop(stride64 // const(LANES, "int64"), "vector") as vector:
            total = const(0.0, VECTOR)
            for row, factor in zip(rows, factors, strict=True):
                total = k.let(fma(x.load(row + vector * LANES, LANES), factor, total), "total")
            if residual is not None:
                total = total + residual.load(target + vector * LANES, LANES)
            k.store(out, target + vector * LANES, total)
    return k
