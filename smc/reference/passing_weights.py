"""Logits of a few tokens, computed while a model's weights are packed: no matrix is loaded a second time, or kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from smc.ir import EncodedTensor, Module, Node, ops
from smc.reference.exact import ExactReference
from smc.reference.exact.linear import rows_of
from smc.reference.weight import Weight

MOST_ROWS = 2048
"""The number of logits that are computed: a third at the first ids, a third at the last, the rest spread between."""

MOST_COLUMNS = 20_000
"""Products with float inputs are added exactly, column by column, only in models up to this size, because it is
slow."""


CONTEXT = 64
"""The context length of a proof."""


class PassingWeights:
    """The reference for an artifact that is being written: it takes every matrix, and gives the logits at the end.

    tokens: one text from position 0. rows: ids whose logits are computed. exact: all operations are those of
    docs/numerics.md; otherwise products with float inputs are added in another order, and logits may differ. rounds:
    some matrix rounds its inputs, which makes small differences larger. context: the context with which the artifact is
    opened.
    """

    def __init__(self, module: Module, count: int = 6, context: int = CONTEXT) -> None:
        self.context = min(context, module.facts.context_length)
        module = module.opened(self.context)
        vocabulary = module.facts.vocab_size
        self.tokens = [(2654435761 * (place + 1) >> 7) % vocabulary for place in range(count)]
        self.rows = _spread(vocabulary)
        slow = [name for name in _multiplied(module) if not module.parameters[name].encoding.rounds_inputs]
        self.exact = sum(module.parameters[name].shape[-1] for name in slow) <= MOST_COLUMNS
        self.rounds = any(module.parameters[name].encoding.rounds_inputs for name in _multiplied(module))
        self._reference = _Reference(module, self.exact)
        self._module, self._calls = module, [call for call, _ in module.calls()]
        self._waiting: dict[tuple[str, str], EncodedTensor] = {}
        places = [node.name for node in module.main.inputs()]
        # The embedding's table has only the rows of these tokens.
        self._values = dict(zip(places, (torch.arange(count), torch.arange(count)), strict=True))

    def take(self, name: str, tensor: EncodedTensor) -> None:
        """Take a loaded matrix of the model. Any thread may call this."""
        for call, slot, function in self._module.uses(name):
            role = next(node.attributes["role"] for node in function.parameters() if node.name == slot)
            if role == "embedding" and tensor.shape[0] == self._module.facts.vocab_size:
                self._waiting[call.name, slot] = rows_of(tensor, torch.tensor(self.tokens))
            elif role == "head":
                self._waiting[call.name, slot] = rows_of(tensor, torch.from_numpy(self.rows))
            else:
                self._waiting[call.name, slot] = tensor

    def advance(self) -> None:
        """Run the calls whose matrices have all been taken, and free these."""
        while self._calls:
            call = self._calls[0]
            names = call.attributes["parameters"]
            matrices = [slot for slot, name in names.items() if len(self._module.parameters[name].shape) > 1]
            if any((call.name, slot) not in self._waiting for slot in matrices):
                return
            weights = {slot: self._waiting.pop((call.name, slot)) for slot in matrices}
            weights |= {slot: self._vector(name) for slot, name in names.items() if slot not in weights}
            inputs = [self._values[name] for name in call.inputs]
            self._values[call.name] = self._reference.call(call, inputs, (len(self.tokens),), weights=weights)
            self._calls.pop(0)

    def logits(self) -> np.ndarray:
        """The logits, float32 [tokens, rows], when all matrices have been taken."""
        assert not self._calls
        return self._values[self._module.main.outputs[0]].numpy()

    def _vector(self, name: str) -> EncodedTensor:
        tensor = self._module.parameters[name].load()
        if self._calls == self._calls[-1:] and tensor.shape[0] == self._module.facts.vocab_size:
            return rows_of(tensor, torch.from_numpy(self.rows))  # the head's bias
        return tensor


class _Reference(ExactReference):
    """Exact, except, if `exact` is false, for products of many columns with float inputs."""

    def __init__(self, module: Module, exact: bool) -> None:
        super().__init__(module, kv_dtype="f16", keep_weights=False)
        self._exact = exact

    def _compute(self, node: Node, operands: Sequence[Any]) -> Any:
        multiplies = node.op in ("linear", "grouped_linear")
        if not self._exact and multiplies and not operands[1].encoding.rounds_inputs:
            decoded = [_decoded(o) if isinstance(o, EncodedTensor) else o for o in operands]
            op = ops.find(node.op)
            return op.call(op.compute, decoded, node.attributes)
        return super()._compute(node, operands)


@dataclass(frozen=True)
class _Stack:
    """The matrices of experts, of which those that are chosen are decoded."""

    tensor: EncodedTensor

    def matrix(self, index: int) -> Weight:
        return Weight.decode(self.tensor.matrix(index))


def _decoded(tensor: EncodedTensor) -> Weight | _Stack:
    return Weight.decode(tensor) if len(tensor.shape) < 3 else _Stack(tensor)


def _multiplied(module: Module) -> list[str]:
    """The matrices that multiply inputs."""
    uses = ((name, use) for name, p in module.parameters.items() if len(p.shape) > 1 for use in module.uses(name))
    return [
        name
        for name, (_, slot, function) in uses
        if any(slot in node.inputs and "table" not in ops.find(node.op).ranks for node in function.nodes())
    ]


def _spread(vocabulary: int) -> np.ndarray:
    """The ids whose logits are computed, in order."""
    if vocabulary <= MOST_ROWS:
        return np.arange(vocabulary)
    third = MOST_ROWS // 3
    middle = np.linspace(third, vocabulary - third - 1, MOST_ROWS - 2 * third).astype(np.int64)
    return np.fromiter(itertools.chain(range(third), middle, range(vocabulary - third, vocabulary)), np.int64)
