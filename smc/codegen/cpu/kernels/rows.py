"""Kernels that work on rows of activations: element-wise ops, quantization.

Every activation row is padded to a multiple of 32 floats, and the padding holds zeros; so no vector ends early.
A kernel's result leaves as float32, as int8 codes, or both: its `Form`s.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tvm.tirx as tirx

from smc.codegen.cpu.builder import Expr, Kernel, Pointer, broadcast, cast, const
from smc.codegen.cpu.kernels.sink import Halves, Sink
from smc.codegen.cpu.kernels.vector_math import LANES, Vectors, tanh
from smc.codegen.kernels.layout import TILE
from smc.codegen.kernels.specs import GATED, ElementwiseKernel, QuantizeTokensKernel, operands
from smc.ir.activations import ACTIVATIONS
from smc.targets import CpuLevel


def rows_together(k: Kernel, level: CpuLevel, begin: Expr, end: Expr) -> Iterator[list[Expr]]:
    """Loops over the rows begin…end (int32) and yields the numbers (int64) of a turn's rows: several, which share the
    shuffles of their maxima and sums, then the rest one by one. One vector of each row takes four registers in all."""
    done = begin
    for step in sorted({4 * level.lanes // LANES, 1}, reverse=True):
        turns = k.let((end - done) // const(step, "int32"), "turns")
        with k.loop(turns, "turn") as turn:
            yield [k.let(cast(done + turn * step + m, "int64"), "row") for m in range(step)]
        done = k.let(done + turns * step, "done")


@contextmanager
def _tiles_of_rows(k: Kernel) -> Iterator[tuple[Expr, Expr, Expr]]:
    """A loop over the tiles begin…end of rows of `stride` floats, 32 columns per turn: token, stride, tile."""
    stride, begin, end = k.scalar("stride"), k.scalar("begin"), k.scalar("end")
    stride64 = k.let(cast(stride, "int64"), "stride")
    tiles = k.let(stride >> const(5, "int32"), "tiles")
    first = k.let(begin // tiles, "first")
    with k.loop((end + tiles - 1) // tiles - first, "row", begin=first) as row:
        start = k.let(row * tiles, "start")
        low = k.let(tirx.max(begin - start, const(0, "int32")), "low")
        with k.loop(tirx.min(end - start, tiles) - low, "tile", begin=low) as tile:
            yield k.let(cast(row, "int64"), "token"), stride64, k.let(cast(tile, "int64"), "tile")


def elementwise_kernel(name: str, spec: ElementwiseKernel, level: CpuLevel) -> Kernel:
    """Tiles of 32 columns, token by token, or the kernel of a chain.

    op: "add", "mul", an activation, "gated_" and an activation (of a, times b), "softcap", or "copy" (which quantizes
    where forms say so).
    """
    if spec.chained:
        return _chained_kernel(name, spec, level)
    k, op = Kernel(name, spec.signature()), spec.op
    pointers = [k.pointer(operand) for operand in operands(op)]
    sink = Sink(k, level, spec.forms)
    assert not sink.wide, "tiles of a group may be computed by several calls"
    with _tiles_of_rows(k) as (token, stride, tile):
        place = k.let(token * stride + tile * TILE, "place")
        low, high = (_values(k, op, pointers, place + offset) for offset in (0, LANES))
        sink.store_tile([token], stride, tile, [(low, high)])
    return k


def _chained_kernel(name: str, spec: ElementwiseKernel, level: CpuLevel) -> Kernel:
    """The tiles begin…end, whole groups of codes, of the tokens first…first+count of a step of `tokens`. a and b hold
    only these tiles; a is overwritten.

    Floats alone are stored at once. Otherwise the op first runs on all vectors, which do not wait for each other, and
    then the results are stored.
    """
    k, op = Kernel(name, spec.signature()), spec.op
    pointers = [k.pointer(operand) for operand in operands(op)]
    sink = Sink(k, level, spec.forms)
    stride = k.let(cast(k.scalar("stride"), "int64"), "stride")
    first, count = (k.scalar(name) for name in ("first", "count"))
    begin, end = k.scalar("begin"), k.scalar("end")
    width = k.let(cast(end - begin, "int64") * TILE, "width")
    if not sink.codes:
        with k.loop(cast(count, "int64"), "row") as row, k.loop(width >> const(5, "int64"), "tile") as tile:
            place = k.let(row * width + tile * TILE, "place")
            low, high = (_values(k, op, pointers, place + offset) for offset in (0, LANES))
            sink.store_tile([cast(first, "int64") + row], stride, tile + cast(begin, "int64"), [(low, high)])
        return k
    with k.loop(cast(count, "int64") * (width >> const(4, "int64")), "vector") as vector:
        k.store(pointers[0], vector * LANES, _values(k, op, pointers, vector * LANES))
    for rows in rows_together(k, level, const(0, "int32"), count):
        # As if the rows were whole.
        starts = [k.let(row * width - cast(begin, "int64") * TILE, "start") for row in rows]
        tokens = [k.let(cast(first, "int64") + row, "token") for row in rows]
        load = functools.partial(tile_of_rows, k, pointers[0], starts)
        sink.store(tokens, stride, k.let(cast(begin, "int64"), "begin"), k.let(cast(end - begin, "int64")), load)
    return k


def tile_of_rows(k: Kernel, x: Pointer, starts: Sequence[Expr], tile: Expr) -> list[Halves]:
    """A tile of the rows that begin at `starts`."""
    places = [k.let(start + tile * TILE, "place") for start in starts]
    return [(k.let(x.load(p, LANES), "low"), k.let(x.load(p + LANES, LANES), "high")) for p in places]


def _values(k: Kernel, op: str, operands: Sequence[Pointer], place: Expr) -> Expr:
    """An element-wise op's results for the 16 columns at `place`."""
    value, *others = [k.let(operand.load(place, LANES), "operand") for operand in operands]
    if activation := ACTIVATIONS.get(op.removeprefix(GATED)):
        value = k.let(activation.formula(Vectors(k), value), "activated")
    if op == "softcap":
        cap = k.scalar("cap")
        scaled = value * broadcast(k.let(const(1.0, "float32") / cap, "inverse"), LANES)
        value = tanh(k, scaled) * broadcast(cap, LANES)
    for other in others:
        value = value + other if op == "add" else value * other
    return k.let(value, "value")


def quantize_tokens_kernel(name: str, spec: QuantizeTokensKernel, level: CpuLevel) -> Kernel:
    """One scale per token, or for several tiles."""
    k = Kernel(name, spec.signature())
    x = k.pointer("x")
    sink = Sink(k, level, [spec.form])
    stride, begin, end = k.scalar("stride"), k.scalar("begin"), k.scalar("end")
    stride64 = k.let(cast(stride, "int64"), "stride")
    tiles = k.let(stride64 >> const(5, "int64"), "tiles")
    for tokens in rows_together(k, level, begin, end):
        load = functools.partial(tile_of_rows, k, x, [k.let(token * stride64, "start") for token in tokens])
        sink.store(tokens, stride64, const(0, "int64"), tiles, load)
    return k
