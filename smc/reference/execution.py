"""`Reference`: a module executed in torch, one whole sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from smc.ir import Function, Module, Node, ops
from smc.reference.activations import quantize_heads
from smc.reference.weight import Weight

Operand = Any
"""A tensor, a parameter, or a tuple of tensors, as the op expects."""


class Reference:
    """Executes a module in float32, activations rounded where an encoding says so.

    kv_dtype: "f16" and "i8" round k (after rope) and v as an artifact with such a KV cache does.
    keep_weights: decoded weights stay in memory between runs, 4 bytes a weight; without, every run reads them again.
    """

    def __init__(
        self, module: Module, kv_dtype: Literal["f32", "f16", "i8"] = "f32", keep_weights: bool = True
    ) -> None:
        self.module = module
        self.kv_dtype = kv_dtype
        self.keep_weights = keep_weights
        self._weights: dict[str, Operand] = {}

    def logits(self, tokens: Tensor) -> Tensor:
        """float32 [n, vocab]: the logits after every token of one sequence, int [n], that starts at position 0."""
        return self.values(tokens)[self.module.main.outputs[0]]

    @torch.inference_mode()
    def values(self, tokens: Tensor) -> dict[str, Tensor]:
        """Every value of `main` by name (the embedding, each layer's output, the logits) for one sequence, int [n]."""
        main = self.module.main
        inputs = [node.name for node in main.inputs()]
        values: dict[str, Tensor] = dict(zip(inputs, (tokens, torch.arange(len(tokens))), strict=True))
        for call, function in self.module.calls():
            weights = {slot: self._weight(name) for slot, name in call.attributes["parameters"].items()}
            values[call.name] = self._run(function, [values[name] for name in call.inputs], weights)
        return values

    def _load(self, name: str) -> Operand:
        """A parameter in the form that `_compute` takes."""
        return Weight.decode(self.module.parameters[name].load())

    def _compute(self, node: Node, operands: Sequence[Operand]) -> Any:
        """The result of an op."""
        op = ops.find(node.op)
        return op.call(op.compute, operands, node.attributes)

    def _weight(self, name: str) -> Operand:
        if name in self._weights:
            return self._weights[name]
        weight = self._load(name)
        if self.keep_weights:
            self._weights[name] = weight
        return weight

    def _cached(self, x: Tensor, kv_heads: int) -> Operand:
        """K or V, float32 [n, kv_heads · head_dim], as it is read again from the KV cache."""
        if self.kv_dtype == "f16":
            return x.half().float()
        if self.kv_dtype == "i8":
            codes, scales = quantize_heads(x, kv_heads)
            return (codes * scales[..., None]).flatten(1)
        return x

    def _run(self, function: Function, inputs: list[Tensor], weights: dict[str, Operand]) -> Tensor:
        values: dict[str, Operand] = {**weights, **dict(zip((n.name for n in function.inputs()), inputs, strict=True))}
        for node in function.nodes():
            if not node.is_computed:
                continue
            cached = {node.argument(name) for name in ops.find(node.op).cached}
            operands = [
                self._cached(values[name], node.attributes["kv_heads"]) if name in cached else values[name]
                for name in node.inputs
            ]
            values[node.name] = self._compute(node, operands)
        result: Tensor = values[function.outputs[0]]
        return result
