"""The ops of the ir: what each takes, and the type of what it gives.

n is the number of tokens of a step. Attention sees, besides its k and v, those of earlier tokens of the same sequence:
the ir has no KV cache, codegen introduces it.

==================  =====================================  ==========================================================
op                  inputs                                 attributes → result
==================  =====================================  ==========================================================
embedding           tokens i32[n], table [vocab, d]        → [n, d]
rms_norm            x [n, d], weight [d]                   eps → x / sqrt(mean(x²) + eps) * weight
linear              x [n, i], weight [o, i], bias? [o],    bias, residual: flags, which optional inputs follow
                    residual? [n, o]                       → x·weightᵀ + bias + residual, [n, o]
rope                x [n, h·head_dim], positions i32[n]    head_dim, theta, scaling (RopeScaling | None); half split
attention           q [n, heads·hd], k, v [n, kv_heads·hd]  heads, kv_heads, head_dim, scale, window (or None) → like q
silu                x                                      x·sigmoid(x)
mul, add            a, b of one shape                      element-wise
gated_activation    gate, up of one shape                  activation ("silu") → activation(gate) * up
softmax             x [n, c]                               over the last dim
top_k               x [n, c]                               k → (values [n, k], indices i32[n, k])
grouped_linear      x [n, i], weights [experts, o, i],     → [n, k, o]: every token times the matrices that it chose
                    index i32[n, k]
project             a tuple                                index → that result
call                the callee's inputs                    function, parameters: {slot: module parameter}
==================  =====================================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smc.ir.types import Dim, TensorType, TupleType, Type

Attributes = Mapping[str, Any]
Rule = Callable[[Sequence[TensorType], Attributes], Type]


class TypeFault(ValueError):
    """An op was given inputs or attributes that it does not take; the message says which."""


def infer_type(op: str, inputs: Sequence[Type], attributes: Attributes) -> Type:
    """The result type of `op`; TypeFault where the inputs or attributes do not fit it."""
    if op == "project":
        (source,) = inputs
        if not isinstance(source, TupleType) or not 0 <= attributes["index"] < len(source.items):
            raise TypeFault("project needs a tuple and an index into it")
        return source.items[attributes["index"]]
    if op not in RULES:
        raise TypeFault(f"there is no op {op!r}")
    tensors = [t for t in inputs if isinstance(t, TensorType)]
    if len(tensors) != len(inputs):
        raise TypeFault(f"{op} takes tensors: project a tuple first")
    needed, rule = RULES[op]
    missing = [name for name in needed if name not in attributes]
    if missing:
        raise TypeFault(f"{op} needs the attribute {missing[0]}")
    return rule(tensors, attributes)


def _expect(op: str, inputs: Sequence[TensorType], *ranks: int) -> None:
    if len(inputs) != len(ranks):
        raise TypeFault(f"{op} takes {len(ranks)} inputs, not {len(inputs)}")
    for place, (tensor, rank) in enumerate(zip(inputs, ranks, strict=True)):
        if len(tensor.shape) != rank:
            raise TypeFault(f"input {place} of {op} must have {rank} dims, not {tensor}")


def _same(op: str, a: Dim, b: Dim, what: str) -> None:
    if a != b:
        raise TypeFault(f"{op}: {what} differ, {a} and {b}")


def _embedding(inputs: Sequence[TensorType], _: Attributes) -> Type:
    _expect("embedding", inputs, 1, 2)
    return TensorType((inputs[0].shape[0], inputs[1].shape[1]))


def _rms_norm(inputs: Sequence[TensorType], _: Attributes) -> Type:
    _expect("rms_norm", inputs, 2, 1)
    _same("rms_norm", inputs[0].shape[1], inputs[1].shape[0], "width and weight")
    return inputs[0]


def _linear(inputs: Sequence[TensorType], attributes: Attributes) -> Type:
    _expect("linear", inputs, 2, 2, *[1] * bool(attributes["bias"]), *[2] * bool(attributes["residual"]))
    tokens, columns = inputs[0].shape
    rows = inputs[1].shape[0]
    _same("linear", columns, inputs[1].shape[1], "input width and weight columns")
    if attributes["bias"]:
        _same("linear", rows, inputs[2].shape[0], "weight rows and bias")
    if attributes["residual"]:
        _same("linear", rows, inputs[-1].shape[1], "weight rows and residual width")
    return TensorType((tokens, rows))


def _rope(inputs: Sequence[TensorType], attributes: Attributes) -> Type:
    _expect("rope", inputs, 2, 1)
    width, head_dim = inputs[0].shape[1], attributes["head_dim"]
    if head_dim % 2 or (isinstance(width, int) and width % head_dim):
        raise TypeFault(f"rope: width {width} is no multiple of an even head_dim {head_dim}")
    return inputs[0]


def _attention(inputs: Sequence[TensorType], attributes: Attributes) -> Type:
    _expect("attention", inputs, 2, 2, 2)
    heads, kv_heads, head_dim = (attributes[name] for name in ("heads", "kv_heads", "head_dim"))
    if heads % kv_heads:
        raise TypeFault(f"attention: {heads} heads are no multiple of {kv_heads} KV heads")
    _same("attention", inputs[0].shape[1], heads * head_dim, "width of q and heads * head_dim")
    for place in (1, 2):
        _same("attention", inputs[place].shape[1], kv_heads * head_dim, "width of k or v and kv_heads * head_dim")
    return inputs[0]


def _unary(inputs: Sequence[TensorType], _: Attributes) -> Type:
    _expect("an element-wise op", inputs, len(inputs[0].shape))
    return inputs[0]


def _binary(inputs: Sequence[TensorType], _: Attributes) -> Type:
    if len(inputs) != 2 or inputs[0].shape != inputs[1].shape:
        raise TypeFault(f"an element-wise op takes two inputs of one shape, not {', '.join(map(str, inputs))}")
    return inputs[0]


def _top_k(inputs: Sequence[TensorType], attributes: Attributes) -> Type:
    _expect("top_k", inputs, 2)
    shape = (inputs[0].shape[0], attributes["k"])
    return TupleType((TensorType(shape), TensorType(shape, "i32")))


def _grouped_linear(inputs: Sequence[TensorType], _: Attributes) -> Type:
    _expect("grouped_linear", inputs, 2, 3, 2)
    _same("grouped_linear", inputs[0].shape[1], inputs[1].shape[2], "input width and weight columns")
    return TensorType((*inputs[2].shape, inputs[1].shape[1]))


RULES: dict[str, tuple[tuple[str, ...], Rule]] = {
    "embedding": ((), _embedding),
    "rms_norm": (("eps",), _rms_norm),
    "linear": (("bias", "residual"), _linear),
    "rope": (("head_dim", "theta", "scaling"), _rope),
    "attention": (("heads", "kv_heads", "head_dim", "scale", "window"), _attention),
    "silu": ((), _unary),
    "mul": ((), _binary),
    "add": ((), _binary),
    "gated_activation": (("activation",), _binary),
    "softmax": ((), _unary),
    "top_k": (("k",), _top_k),
    "grouped_linear": ((), _grouped_linear),
}
