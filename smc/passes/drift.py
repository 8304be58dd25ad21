"""`Drift`: how far the inputs of a quantized model are from those of the float model, and what makes good for it.

GPTAQ (Li et al. 2025, arXiv 2504.02692) rounds a matrix W so that its products with the inputs x' behind quantized
matrices come near to W·x, x the float model's inputs. With E[(x - x')·x'ᵀ] = D and E[x'·x'ᵀ] = H that is to round the
weights W + W·D·H⁻¹ in place of W. D is known from few tokens only: so H is damped, and only a part of it is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smc.ir import Module, Node
from smc.passes.guidance import Guidance

if TYPE_CHECKING:
    from torch import Tensor

    from smc.passes.calibration import Calibration

DAMPING = 0.1
"""What part of H's mean diagonal is added to it."""


class Drift:
    """Runs the float model and the one that is being quantized beside each other, call by call."""

    def __init__(self, module: Module, quantized: Module, guidance: Guidance, calibration: Calibration) -> None:
        """Stand before the first call. `quantized` is read as it is when a call runs."""
        self._guidance = guidance
        self._float = calibration.runner(module, only_gradient_windows=True)
        self._quantized = calibration.runner(quantized, only_gradient_windows=True)

    def correction(self, call: Node, source: str) -> Tensor:
        """D·H⁻¹ of a value that matrices of this call are multiplied with, float32 [columns, columns]."""
        import torch

        exact, drifted = (self._inputs(runner, call, source) for runner in (self._float, self._quantized))
        weights = self._guidance.token_weights(call, source).flatten()[:, None]
        weighted = drifted * weights
        moments = drifted.T @ weighted
        products = (exact - drifted).T @ weighted
        mean = moments.diagonal().mean()
        moments.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
        return torch.linalg.solve(moments, products, left=False)

    def advance(self, call: Node) -> None:
        """Run a call of both models, all of its parameters quantized in the one."""
        self._float.advance(call)
        self._quantized.advance(call)

    def _inputs(self, runner: Any, call: Node, source: str) -> Tensor:
        """What a value is on all windows, float32 [tokens, columns]."""
        import torch

        found: list[Tensor] = []
        node_name = self._guidance.first_reader(call, source)

        def observe(node: Node, operands: Sequence[Any]) -> None:
            if node.name == node_name:
                found.append(operands[node.inputs.index(source)].clone())

        runner.observe(call, observe, until=node_name)
        return torch.cat(found)
