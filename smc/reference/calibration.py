"""Calibration: a text cut into windows, and the model run over all of them, one call at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smc.errors import InputError
from smc.ir import ModelFacts, Module, Node
from smc.reference.execution import Batch, Hook, Reference
from smc.reference.text import read_tokens

WINDOW = 512
"""Tokens that are seen together, or the model's context where that is shorter."""

MOST_WINDOWS = 64
"""Windows taken of a longer text, evenly spread over it."""

LEAST_TOKENS = 1024
"""Fewer say too little: the second moments of a few inputs have no use for the others."""

BATCH_TOKENS = 2048
"""About how many tokens run together: what a layer holds besides its weights does not grow with the text."""

Observe = Callable[[Node, Sequence[Any]], None]


class CalibrationText:
    """Windows of a text, int64 [length] each, that quantizers see a model run on."""

    def __init__(self, windows: Sequence[Tensor]) -> None:
        """windows: tokens of the model, each seen alone, from position 0."""
        self.windows = list(windows)

    @staticmethod
    def read(path: Path, facts: ModelFacts) -> CalibrationText:
        """A text file, by the model's own tokenizer; InputError where it is too short or no text of that model."""
        tokens = read_tokens(path, facts.tokenizer, facts.vocab_size)
        length = min(WINDOW, facts.context_length)
        count = len(tokens) // length
        if len(tokens) < LEAST_TOKENS or not count:
            raise InputError(
                f"the calibration text {path} is too short: it has {len(tokens):,} tokens, and at least "
                f"{LEAST_TOKENS:,} are needed, better {MOST_WINDOWS * length:,}"
            )
        whole = torch.tensor(tokens, dtype=torch.int64)[: count * length].view(count, length)
        taken = min(count, MOST_WINDOWS)
        return CalibrationText([whole[index * count // taken] for index in range(taken)])

    def runner(self, module: Module) -> CallRunner:
        """Runs this module on the text from its first call on."""
        return CallRunner(module, self.windows)


class CallRunner:
    """Runs a module on some sequences, one call after the other, and holds only what later calls read.

    Parameters are those of `module.parameters` when a call runs: whoever quantizes may replace them in between.
    """

    def __init__(self, module: Module, windows: Sequence[Tensor]) -> None:
        """Stand before the first call."""
        self._reference = Reference(module, keep_weights=False)
        per_batch = max(1, BATCH_TOKENS // max(map(len, windows)))
        self._batches = [Batch.of(windows[start : start + per_batch]) for start in range(0, len(windows), per_batch)]
        self._values = [self._reference.inputs(batch) for batch in self._batches]
        self._waiting = [call for call, _ in module.calls()]

    def observe(self, call: Node, observe: Observe) -> None:
        """Run a call and let `observe` see every node that is computed, with its operands; its result is forgotten."""
        for _ in self._results(call, _Observer(observe)):
            pass

    def advance(self, call: Node) -> None:
        """Run a call; its result is what later calls read."""
        self._waiting.remove(call)
        needed = {name for later in self._waiting for name in later.inputs}
        for index, result in enumerate(self._results(call, Hook())):
            values = {**self._values[index], call.name: result}
            self._values[index] = {name: value for name, value in values.items() if name in needed}

    def _results(self, call: Node, hook: Hook) -> Iterator[Tensor]:
        """The call's result for one batch after the other."""
        weights = self._reference.weights_of(call)
        for batch, values in zip(self._batches, self._values, strict=True):
            inputs = [values[name] for name in call.inputs]
            yield self._reference.call(call, inputs, batch.lengths, hook, weights)


class _Observer(Hook):
    def __init__(self, observe: Observe) -> None:
        self._observe = observe

    def reads(self, call: Node, node: Node, operands: list[Any]) -> Sequence[Any]:
        with torch.inference_mode(False), torch.no_grad():  # what an observer makes is used outside, too
            self._observe(node, operands)
        return operands
