"""Logits of a few tokens, computed while a model's weights pass by: no matrix is loaded a second time, or kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from smc.ir import EncodedTensor, Module, Node, ops
from smc.reference.exact import ExactReference
from smc.reference.exact.linear import rows_of
from smc.reference.weight import Weight

MOST_ROWS = 2048
"""Of the logits, a third from the first ids on, a third up to the last, the rest spread between."""

MOST_COLUMNS = 20_000
"""Products by float inputs are summed exactly column by column, which takes so long that only small models get it."""


CONTEXT = 64
"""Tokens of the KV cache that a proof gives a program."""


class PassingWeights:
    """The reference for an artifact that is being written: give it every matrix, and get the logits at the end.

    tokens: one text from position 0. rows: ids whose logits are computed. exact: all operations are those of
    docs/numerics.md; otherwise products with float inputs are summed in another order, and logits may differ.
    rounds: some matrix rounds its inputs, which makes a small difference larger. context: that the artifact is opened
    with.
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
        # The table of the embedding has the rows of these tokens alone.
        self._values = dict(zip(places, (torch.arange(count), torch.arange(count)), strict=True))

    def take(self, name: str, tensor: EncodedTensor) -> None:
        """A matrix of the model, loaded; any thread may call this."""
        for call, slot, function in self._module.uses(name):
            role = next(node.attributes["role"] for node in function.parameters() if node.name == slot)
            if role == "embedding" and tensor.shape[0] == self._module.facts.vocab_size:
                self._waiting[call.name, slot] = rows_of(tensor, torch.tensor(self.tokens))
            elif role == "head":
                self._waiting[call.name, slot] = rows_of(tensor, torch.from_numpy(self.rows))
            else:
                self._waiting[call.name, slot] = tensor

    def advance(self) -> None:
        """Run the calls whose matrices are all here, and let go of these."""
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
        """float32 [tokens, rows], when all matrices were here."""
        assert not self._calls
        return self._values[self._module.main.outputs[0]].numpy()

    def _vector(self, name: str) -> EncodedTensor:
        tensor = self._module.parameters[name].load()
        if self._calls == self._calls[-1:] and tensor.shape[0] == self._module.facts.vocab_size:
            return rows_of(tensor, torch.from_numpy(self.rows))  # a bias of the head
        return tensor


class _Reference(ExactReference):
    """Exact, but where `exact` is false for products of many columns by float inputs."""

    def __init__(self, module: Module, exact: bool) -> None:
        super().__init__(module, kv_dtype="f16", keep_weights=False)
        self._exact = exact

    def _compute(self, node: Node, operands: Sequence[Any]) -> Any:
        if not self._exact and node.op == "linear" and not operands[1].encoding.rounds_inputs:
            decoded = [Weight.decode(o) if isinstance(o, EncodedTensor) else o for o in operands]
            op = ops.find(node.op)
            return op.call(op.compute, decoded, node.attributes)
        return super()._compute(node, operands)


def _multiplied(module: Module) -> list[str]:
    """The matrices that inputs are multiplied with."""
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
