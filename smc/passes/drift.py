"""`Drift`: how far the inputs of a quantized model are from those of the float model, and how weights compensate.

GPTAQ (Li et al. 2025, arXiv 2504.02692) rounds a matrix W so that its products with the inputs x' after quantized
matrices come near to W·x, where x are the float model's inputs. With E[(x - x')·x'ᵀ] = D and E[x'·x'ᵀ] = H that means
to round W + W·D·H⁻¹ in place of W. D comes from few tokens, so H is damped, and only a part of the correction is taken.
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
"""The part of H's mean diagonal that is added to its diagonal."""


class Drift:
    """Runs the float model and the model that is being quantized together, call by call."""

    def __init__(self, module: Module, quantized: Module, guidance: Guidance, calibration: Calibration) -> None:
        """Start at the first call. The parameters of `quantized` are read when a call runs."""
        self._guidance = guidance
        self._float = calibration.runner(module, only_gradient_windows=True)
        self._quantized = calibration.runner(quantized, only_gradient_windows=True)
        self._exact: dict[str, Tensor] = {}  # what the float model has for the values of the call that is rounded
        self._ahead: Node | None = None  # the call that only the float model has run

    def correction(self, call: Node, source: str) -> Tensor:
        """D·H⁻¹ of a value that matrices of this call multiply, float32 [columns, columns]."""
        import torch

        if self._ahead is not call:
            self._advance_float(call)
        found = self._collector(call, [source])
        self._quantized.observe(call, found.observe, until=self._guidance.first_reader(call, source))
        exact, drifted = self._exact.pop(source), found.values()[source]
        weights = self._guidance.token_weights(call, source).flatten()[:, None]
        weighted = drifted * weights
        moments = drifted.T @ weighted
        products = (exact - drifted).T @ weighted
        mean = moments.diagonal().mean()
        moments.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
        return torch.linalg.solve(moments, products, left=False)

    def advance(self, call: Node) -> None:
        """Run a call of both models; in one of them all its parameters are quantized."""
        if self._ahead is not call:
            self._float.advance(call)
        self._exact.clear()
        self._quantized.advance(call)

    def _advance_float(self, call: Node) -> None:
        """Run a call of the float model, and keep what its matrices multiply."""
        found = self._collector(call, list(self._guidance.sources(call)))
        self._float.advance(call, found.observe)
        self._exact, self._ahead = found.values(), call

    def _collector(self, call: Node, sources: Sequence[str]) -> _Collector:
        return _Collector({self._guidance.first_reader(call, source): source for source in sources})


class _Collector:
    """Keeps values of a call for all windows."""

    def __init__(self, readers: dict[str, str]) -> None:
        """readers: the nodes that read them → the values."""
        self._readers = readers
        self._found: dict[str, list[Tensor]] = {source: [] for source in readers.values()}

    def observe(self, node: Node, operands: Sequence[Any]) -> None:
        """Keep the value that the node reads."""
        if node.name in self._readers:
            source = self._readers[node.name]
            self._found[source].append(operands[node.inputs.index(source)].clone())

    def values(self) -> dict[str, Tensor]:
        """Each of them on all windows, float32 [tokens, columns]."""
        import torch

        return {source: torch.cat(parts) for source, parts in self._found.items()}
