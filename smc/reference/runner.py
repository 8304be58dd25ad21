"""`CallRunner`: runs a model on many sequences, one call at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from smc.ir import Module, Node
from smc.reference.execution import Batch, Hook, Reference

BATCH_TOKENS = 512
"""The approximate number of tokens that run together, so that a layer's memory does not grow with the text."""

Observe = Callable[[Node, Sequence[Any]], None]


class CallRunner:
    """Runs a module on some sequences, one call after the other, and keeps only what later calls read.

    It reads `module.parameters` when a call runs: quantizers may replace them between calls.
    """

    def __init__(self, module: Module, windows: Sequence[Tensor], batch_tokens: int = BATCH_TOKENS) -> None:
        """Start at the first call."""
        self._reference = Reference(module, keep_weights=False)
        per_batch = max(1, batch_tokens // max(map(len, windows)))
        self._batches = [Batch.of(windows[start : start + per_batch]) for start in range(0, len(windows), per_batch)]
        self._values = [self._reference.inputs(batch) for batch in self._batches]
        self._waiting = [call for call, _ in module.calls()]

    def observe(self, call: Node, observe: Observe, until: str | None = None) -> None:
        """Run a call and give `observe` every node that is computed, with its operands; the result is not kept.

        until: the last node that `observe` gets; it is not computed.
        """
        weights = self._reference.weights_of(call)
        for batch, values in zip(self._batches, self._values, strict=True):
            with contextlib.suppress(_Enough):
                inputs = [values[name] for name in call.inputs]
                self._reference.call(call, inputs, batch.lengths, _Observer(observe, until), weights)

    def advance(self, call: Node, observe: Observe | None = None) -> None:
        """Run a call and keep its result for later calls. observe: as for `observe`."""
        self._waiting.remove(call)
        needed = {name for later in self._waiting for name in later.inputs}
        hook = Hook() if observe is None else _Observer(observe)
        for index, result in enumerate(self.results(call, hook)):
            values = {**self._values[index], call.name: result}
            self._values[index] = {name: value for name, value in values.items() if name in needed}

    def values(self, name: str) -> list[Tensor]:
        """A value of `main` that later calls read, float32 [n, columns] for one batch after the other."""
        return [values[name] for values in self._values]

    def results(self, call: Node, hook: Hook | None = None) -> Iterator[Tensor]:
        """The call's result for one batch after the other; the runner stays where it is."""
        weights = self._reference.weights_of(call)
        for batch, values in zip(self._batches, self._values, strict=True):
            inputs = [values[name] for name in call.inputs]
            yield self._reference.call(call, inputs, batch.lengths, hook or Hook(), weights)


class _Enough(Exception):
    """Ends a call after the last node that was requested."""


class _Observer(Hook):
    def __init__(self, observe: Observe, until: str | None = None) -> None:
        self._observe, self._until = observe, until

    def reads(self, call: Node, node: Node, operands: list[Any]) -> Sequence[Any]:
        with torch.inference_mode(False), torch.no_grad():  # results of observers are also used outside
            self._observe(node, operands)
        if node.name == self._until:
            raise _Enough
        return operands
