"""Gradients of a model's loss, one call at a time: forward, keeping every call's inputs in files, then backward."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smc.ir import Module, Node
from smc.reference.execution import Batch, Hook, Reference
from smc.reference.runner import CallRunner, Observe

ObserveGradient = Callable[[Node, Sequence[Any], Tensor], None]
"""A callback for a node, its operands, and the gradient of the loss with respect to its result."""


class GradientRunner:
    """Runs a module forward on two lists of sequences, call by call, and then backward on the first list.

    The loss is that of tokens drawn from the model's own predictions, so the mean of products of its gradients is the
    Fisher information (Kunstner et al. 2019, arXiv 1905.12558), the curvature of the KL divergence from this model.
    Memory holds one call's weights and activations. Gradients ignore rounding.
    """

    def __init__(
        self, module: Module, windows: Sequence[Tensor], others: Sequence[Tensor], folder: Path, seed: int
    ) -> None:
        """Start at the first call. folder: keeps the inputs of calls, 4 bytes per token and column."""
        self._module, self._folder, self._seed = module, folder, seed
        self._others = CallRunner(module, others) if others else None
        self._batches = [Batch.of([window]) for window in windows]
        self._forward = Reference(module, keep_weights=False)
        self._backward = Reference(module, keep_weights=False, gradients=True)
        self._values = [self._forward.inputs(batch) for batch in self._batches]
        self._calls = [call for call, _ in module.calls()]
        self._gradients: dict[str, Tensor] = {}  # "window.value" → the gradient of the loss

    def advance(self, call: Node, observe: Observe) -> None:
        """Run a call forward. `observe` gets every node for the second list."""
        later = self._calls[self._calls.index(call) + 1 :]
        if self._others is not None:
            if later:
                self._others.advance(call, observe)
            else:
                self._others.observe(call, observe, until=self._last_node(call))
        needed = {name for other in later for name in other.inputs}
        inputs = {f"{index}.{name}": v[name] for index, v in enumerate(self._values) for name in call.inputs}
        write_tensors(self._path(call), inputs)
        if not later:
            return
        weights = self._forward.weights_of(call)
        for index, (batch, values) in enumerate(zip(self._batches, self._values, strict=True)):
            result = self._forward.call(call, [values[n] for n in call.inputs], batch.lengths, None, weights)
            values = {**values, call.name: result}
            self._values[index] = {name: value for name, value in values.items() if name in needed}

    def retreat(self, call: Node, observe: ObserveGradient) -> None:
        """Run a call backward, the last call first. `observe` gets every node whose result has a gradient."""
        from safetensors.torch import load_file

        if call is not self._calls[-1] and not self._gradients:
            self._gradients = load_file(self._folder / f"gradients-{self._calls.index(call)}.safetensors")
        kept = load_file(self._path(call))
        weights = self._backward.weights_of(call)
        for index, batch in enumerate(self._batches):
            inputs = [kept.pop(f"{index}.{name}") for name in call.inputs]
            leaves = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
            result = self._backward.call(call, leaves, batch.lengths, _GradientHook(observe), weights)
            if call is self._calls[-1]:
                gradient = self._of_the_loss(result.detach(), index)
            else:
                gradient = self._gradients.pop(f"{index}.{call.name}")
            torch.autograd.backward(result, gradient)
            for name, leaf in zip(call.inputs, leaves, strict=True):
                if leaf.grad is not None:
                    key = f"{index}.{name}"
                    self._gradients[key] = self._gradients[key] + leaf.grad if key in self._gradients else leaf.grad

    def keep(self, call: Node) -> None:
        """Save what is needed to continue after this call's backward pass; remove its own files."""
        index = self._calls.index(call)
        if index:
            write_tensors(self._folder / f"gradients-{index - 1}.safetensors", self._gradients)
        self._path(call).unlink(missing_ok=True)
        (self._folder / f"gradients-{index}.safetensors").unlink(missing_ok=True)

    def _of_the_loss(self, logits: Tensor, index: int) -> Tensor:
        """The gradient of -log p(token), with the token drawn from p, with respect to the logits: p minus 1 at the
        token."""
        gradient = torch.softmax(logits, -1)
        generator = torch.Generator().manual_seed(self._seed + index)
        drawn = torch.multinomial(gradient, 1, generator=generator)
        return gradient.scatter_add_(1, drawn, torch.full_like(drawn, -1, dtype=gradient.dtype))

    def _last_node(self, call: Node) -> str:
        """The node that computes the call's result."""
        return self._module.functions[call.attributes["function"]].outputs[0]

    def _path(self, call: Node) -> Path:
        return self._folder / f"inputs-{self._calls.index(call)}.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, which gets its name when it is complete."""
    from safetensors.torch import save_file

    partial = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in tensors.items()}, partial)
    os.replace(partial, path)


class _GradientHook(Hook):
    """A hook that reports the gradient of every node's result."""

    def __init__(self, observe: ObserveGradient) -> None:
        self._observe = observe
        self._operands: dict[str, list[Any]] = {}

    def reads(self, call: Node, node: Node, operands: list[Any]) -> Sequence[Any]:
        self._operands[node.name] = [x.detach() if isinstance(x, Tensor) else x for x in operands]
        return operands

    def writes(self, call: Node, node: Node, result: Any) -> Any:
        operands = self._operands.pop(node.name)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        if not result.requires_grad:
            result = result.detach().requires_grad_()

        def observe(gradient: Tensor) -> None:
            with torch.no_grad():
                self._observe(node, operands, gradient)

        result.register_hook(observe)
        return result
