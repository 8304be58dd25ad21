"""`Reference`: executes a module in torch, whole sequences at a time; hooks can observe and change values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from smc.ir import Function, Module, Node, ops
from smc.reference.activations import quantize_heads, straight_through
from smc.reference.weight import Weight

Operand = Any
"""A tensor, a parameter, or a tuple of tensors, as the op expects."""


@dataclass(frozen=True)
class Batch:
    """Sequences that run together, each from position 0; their tokens are concatenated.

    tokens and positions: int64 [n]. lengths: how many of the n tokens each sequence has.
    """

    tokens: Tensor
    positions: Tensor
    lengths: tuple[int, ...]

    @staticmethod
    def of(sequences: Sequence[Tensor]) -> Batch:
        """A batch of sequences, int [length] each."""
        lengths = tuple(map(len, sequences))
        positions = torch.cat([torch.arange(length) for length in lengths])
        return Batch(torch.cat(list(sequences)), positions, lengths)


class Hook:
    """Observes, and may replace, the operands and the result of every node of every call. Override what you need."""

    def reads(self, call: Node, node: Node, operands: list[Operand]) -> Sequence[Operand]:
        """The operands that the node computes with, in the order of `node.inputs`, or others in their place."""
        return operands

    def writes(self, call: Node, node: Node, result: Any) -> Any:
        """The result that the node's readers get, or another in its place."""
        return result


class Reference:
    """Executes a module in float32, activations rounded where an encoding says so.

    kv_dtype: "f16" and "i8" round k (after rope) and v as an artifact with such a KV cache does.
    keep_weights: decoded weights stay in memory between runs, 4 bytes per weight; otherwise every run reads them again.
    gradients: results can be differentiated with respect to tensors that require it (from a hook); the gradient ignores
    rounding (the straight-through estimator of Bengio et al., 2013). Numbers are the same with and without it.
    """

    def __init__(
        self,
        module: Module,
        kv_dtype: Literal["f32", "f16", "i8"] = "f32",
        keep_weights: bool = True,
        gradients: bool = False,
    ) -> None:
        self.module = module
        self.kv_dtype = kv_dtype
        self.keep_weights = keep_weights
        self.gradients = gradients
        self._weights: dict[str, Operand] = {}

    def logits(self, tokens: Tensor) -> Tensor:
        """float32 [n, vocab]: the logits after every token of one sequence, int [n], that starts at position 0."""
        return self.values(tokens)[self.module.main.outputs[0]]

    def values(self, tokens: Tensor) -> dict[str, Tensor]:
        """Every value of `main` by name (the embedding, each layer's output, the logits) for one sequence, int [n]."""
        return self.run(Batch.of([tokens]))

    def run(self, batch: Batch, hook: Hook | None = None) -> dict[str, Tensor]:
        """Every value of `main` by name for a batch of sequences; tokens are rows, in the batch's order."""
        values = self.inputs(batch)
        for call, _ in self.module.calls():
            values[call.name] = self.call(call, [values[name] for name in call.inputs], batch.lengths, hook)
        return values

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The inputs of `main`, by name."""
        names = [node.name for node in self.module.main.inputs()]
        return dict(zip(names, (batch.tokens, batch.positions), strict=True))

    def call(
        self,
        call: Node,
        inputs: Sequence[Tensor],
        lengths: Sequence[int],
        hook: Hook | None = None,
        weights: Mapping[str, Operand] | None = None,
    ) -> Tensor:
        """The result of one call of `main`, float32 [n, columns].

        inputs: its activations. lengths: the lengths of the sequences in their n rows. weights: the result of
        `weights_of` for this call, if it runs several times.
        """
        function = self.module.functions[call.attributes["function"]]
        weights = self.weights_of(call) if weights is None else weights
        with torch.enable_grad() if self.gradients else torch.inference_mode():
            return self._run(call, function, inputs, weights, lengths, hook or Hook())

    def weights_of(self, call: Node) -> dict[str, Operand]:
        """The call's parameters by slot, ready to compute with."""
        return {slot: self._weight(name) for slot, name in call.attributes["parameters"].items()}

    def _load(self, name: str) -> Operand:
        """A parameter as `_compute` takes it."""
        return Weight.decode(self.module.parameters[name].load())

    def _compute(self, node: Node, operands: Sequence[Operand]) -> Any:
        """The result of a node's op by its meaning in torch."""
        op = ops.find(node.op)
        return op.call(op.compute, operands, node.attributes)

    def _weight(self, name: str) -> Operand:
        if name in self._weights:
            return self._weights[name]
        with torch.no_grad():
            weight = self._load(name)
        if self.keep_weights:
            self._weights[name] = weight
        return weight

    def _cached(self, x: Tensor, kv_heads: int) -> Operand:
        """K or V, float32 [n, kv_heads · head_dim], as it is read again from the KV cache."""
        if self.kv_dtype == "f16":
            return straight_through(x, x.half().float())
        if self.kv_dtype == "i8":
            codes, scales = quantize_heads(x, kv_heads)
            return straight_through(x, (codes * scales[..., None]).flatten(1))
        return x

    def _run(
        self,
        call: Node,
        function: Function,
        inputs: Sequence[Tensor],
        weights: Mapping[str, Operand],
        lengths: Sequence[int],
        hook: Hook,
    ) -> Tensor:
        values: dict[str, Operand] = {**weights, **dict(zip((n.name for n in function.inputs()), inputs, strict=True))}
        for node in function.nodes():
            if node.is_computed:
                operands = hook.reads(call, node, [values[name] for name in node.inputs])
                values[node.name] = hook.writes(call, node, self._node(node, operands, lengths))
        result: Tensor = values[function.outputs[0]]
        return result

    def _node(self, node: Node, operands: Sequence[Operand], lengths: Sequence[int]) -> Any:
        """The result of a node. Ops that read the cache run on one sequence at a time."""
        cached = {node.argument(name) for name in ops.find(node.op).cached}
        if not cached:
            return self._compute(node, operands)
        parts = zip(*(operand.split(tuple(lengths)) for operand in operands), strict=True)
        return torch.cat(
            [
                self._compute(
                    node,
                    [
                        self._cached(part, node.attributes["kv_heads"]) if name in cached else part
                        for name, part in zip(node.inputs, sequence, strict=True)
                    ],
                )
                for sequence in parts
            ]
        )
