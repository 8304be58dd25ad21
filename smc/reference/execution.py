"""`Reference`: a module executed in torch, one whole sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from smc.ir import Function, Module
from smc.reference.activations import quantize_heads
from smc.reference.operators import OPERATORS, Attributes, Operand, Weight


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
        """A parameter in the form that `_operator`'s functions take."""
        return Weight.decode(self.module.parameters[name].load())

    def _operator(self, op: str) -> Callable[[Sequence[Operand], Attributes], Operand]:
        """The function that computes an op."""
        return OPERATORS[op]

    def _weight(self, name: str) -> Operand:
        if name in self._weights:
            return self._weights[name]
        weight = self._load(name)
        if self.keep_weights:
            self._weights[name] = weight
        return weight

    def _cached(self, operands: list[Tensor], attributes: Attributes) -> list[Tensor]:
        """K and V, float32 [n, kv_heads · head_dim], as they are read again from the KV cache."""
        if self.kv_dtype == "f16":
            return [x.half().float() for x in operands]
        if self.kv_dtype == "i8":
            rounded = (quantize_heads(x, attributes["kv_heads"]) for x in operands)
            return [(codes * scales[..., None]).flatten(1) for codes, scales in rounded]
        return operands

    def _run(self, function: Function, inputs: list[Tensor], weights: dict[str, Operand]) -> Tensor:
        values: dict[str, Operand] = {**weights, **dict(zip((n.name for n in function.inputs()), inputs, strict=True))}
        for node in function.nodes():
            if node.op in ("input", "parameter"):
                continue
            operands = [values[name] for name in node.inputs]
            if node.op == "attention":
                operands[1:] = self._cached(operands[1:], node.attributes)
            values[node.name] = self._operator(node.op)(operands, node.attributes)
        result: Tensor = values[function.outputs[0]]
        return result
