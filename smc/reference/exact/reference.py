"""`ExactReference`: a module executed with the rounding of docs/numerics.md, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from smc.ir import Node
from smc.reference.activations import quantize_heads
from smc.reference.exact.attention import HeadCodes
from smc.reference.exact.registry import compute_exactly
from smc.reference.execution import Batch, Hook, Operand, Reference


class ExactReference(Reference):
    """Executes a module as its artifact does, in the same float32 operations: for tests and golden results.

    Bits are equal for every encoding; `Reference` is much faster. Sequences start at cache index 0.
    """

    def run(self, batch: Batch, hook: Hook | None = None) -> dict[str, Tensor]:
        """Every value of `main` by name, as `Reference.run`."""
        threads = torch.get_num_threads()
        # Millions of small operations: distributing each over threads would cost more than computing it.
        torch.set_num_threads(1)
        try:
            return super().run(batch, hook)
        finally:
            torch.set_num_threads(threads)

    def _load(self, name: str) -> Operand:
        return self.module.parameters[name].load()

    def _cached(self, x: Tensor, kv_heads: int) -> Operand:
        """As `Reference._cached`, but with the codes of an int8 cache."""
        if self.kv_dtype != "i8":
            return super()._cached(x, kv_heads)
        codes, scales = quantize_heads(x, kv_heads)
        return HeadCodes(codes.flatten(1), scales)

    def _compute(self, node: Node, operands: Sequence[Operand]) -> Any:
        return compute_exactly(node.op, operands, node.attributes)
