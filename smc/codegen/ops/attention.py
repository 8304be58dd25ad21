"""attention: q against the keys and values of the cache, to which k and v are written before."""

from __future__ import annotations

import math
from dataclasses import replace

from smc.codegen.kernels.abi import AttentionShape
from smc.codegen.kernels.specs import AttentionKernel, MergeKernel, RopeKernel
from smc.codegen.ops.registry import Lowering, lowers
from smc.codegen.plan.arguments import (
    Activation,
    Argument,
    Buffer,
    Cache,
    KvShape,
    Number,
    Rope,
    Scratch,
    StepField,
    Stride,
    Tiles,
    Vector,
)
from smc.codegen.plan.domains import CacheWrites, Merges, Splits
from smc.codegen.plan.lowering import FunctionLowering
from smc.codegen.plan.plan import ByCacheDtype, Operation
from smc.codegen.plan.work import Work
from smc.errors import InputError
from smc.ir import Node


@lowers("attention")
class Attention(Lowering):
    """Three kernels: keys and values into the cache, attention to splits of it, and what the splits left merged."""

    def lower(self, f: FunctionLowering, node: Node) -> None:
        """q and k are rotated by the kernels that read them."""
        q_table, k_table = (f.rotations.get(value) for value in node.inputs[:2])
        if q_table != k_table:
            raise InputError(f"attention {node.name}: q and k must be rotated alike")
        attributes = node.attributes
        heads, kv_heads, head_dim = (attributes[name] for name in ("heads", "kv_heads", "head_dim"))
        pairs = q_table.pairs if q_table else 0
        shape = AttentionShape(heads, kv_heads, head_dim, "f16", q_table is not None, pairs)
        cache = KvShape(kv_heads, shape.padded_dim, attributes["window"] or 0)
        q, k, v = f.unturned(node.inputs[0]), f.unturned(node.inputs[1]), f.buffer(node.inputs[2])
        out = f.new_buffer(node.name, node.tensor.shape[1])
        write = _write(f, node, shape, cache, Rope(q_table), (k, v))
        attention = _attention(f, node, shape, cache, Rope(q_table), (q, out))
        attention.after.append(write)
        f.add(
            node.name,
            "merge",
            MergeKernel(shape),
            Merges(shape.heads),
            {
                "tiles": Tiles(),
                "partials": StepField("partials"),
                "out": Activation(out),
                "scratch": Scratch(),
                "stride": Stride(out),
                "window": Number(cache.window),
                "splits": StepField("splits"),
            },
            writes=(out,),
            work=None,  # in some steps only, and what it moves is in cache
        )


def _write(
    f: FunctionLowering, node: Node, shape: AttentionShape, cache: KvShape, rope: Rope, kv: tuple[Buffer, Buffer]
) -> Operation:
    """k, rotated, and v into the cache."""
    k, v = kv
    norm = f.head_norms.get(node.inputs[1])
    shape = replace(shape, normed=norm is not None)
    work = Work(cache_writes=2 * shape.kv_heads * shape.padded_dim, cache=cache)
    return f.add(
        node.name,
        "rope_cache",
        ByCacheDtype(RopeKernel(shape)),
        CacheWrites(shape.kv_heads),
        {
            "k": Activation(k),
            "v": Activation(v),
            "rope": rope,
            "slots": Cache(cache, "slots"),
            "tiles": StepField("tiles"),
            "cache": Cache(cache, "data"),
            "scales": Cache(cache, "data"),
            "beyond": StepField("beyond"),
            "stride": Stride(k),
            "page": Cache(cache, "page_bytes"),
            "layer": Cache(cache, "first_head"),
            **_head_norm(norm),
        },
        reads=(k, v),
        slots=_norm_slots(norm),
        work=lambda sizes: work,
    )


def _attention(
    f: FunctionLowering, node: Node, shape: AttentionShape, cache: KvShape, rope: Rope, q_out: tuple[Buffer, Buffer]
) -> Operation:
    """Attention itself; where the cache is split it leaves partial results."""
    q, out = q_out
    norm, cap, scale = f.head_norms.get(node.inputs[0]), node.attributes["softcap"], node.attributes["scale"]
    shape = replace(shape, normed=norm is not None, capped=cap is not None)
    work = Work(
        cache_reads=2 * shape.kv_heads * shape.padded_dim,
        cache_macs=2 * shape.heads * shape.head_dim,
        cache=cache,
    )
    return f.add(
        node.name,
        "attention",
        ByCacheDtype(AttentionKernel(shape)),
        Splits(shape.kv_heads),
        {
            "q": Activation(q),
            "rope": rope,
            "cache": Cache(cache, "data"),
            "scales": Cache(cache, "data"),
            "tables": Cache(cache, "tables"),
            "tiles": Tiles(),
            "out": Activation(out),
            "partials": StepField("partials"),
            "scratch": Scratch(),
            "stride": Stride(out),
            "page": Cache(cache, "page_bytes"),
            "layer": Cache(cache, "first_head"),
            "scale": Number(scale * math.log2(math.e) if cap is None else scale / cap),
            "window": Number(cache.window),
            "splits": StepField("splits"),
            **_head_norm(norm),
            **({} if cap is None else {"cap": Number(cap * math.log2(math.e))}),
        },
        reads=(q,),
        writes=(out,),
        slots=_norm_slots(norm),
        work=lambda sizes: work,
    )


def _head_norm(norm: Node | None) -> dict[str, Argument]:
    """What a kernel needs to norm the heads that it reads."""
    return {} if norm is None else {"norm": Vector(norm.inputs[1]), "eps": Number(float(norm.attributes["eps"]))}


def _norm_slots(norm: Node | None) -> tuple[str, ...]:
    return () if norm is None else (norm.inputs[1],)
