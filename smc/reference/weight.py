"""Parameters for the torch functions of ops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smc.ir import EncodedTensor, Encoding, rotate
from smc.reference.activations import round_activations


@dataclass(frozen=True)
class Weight:
    """A decoded parameter: float32 values, and the rounding of activations that its encoding prescribes."""

    values: Tensor
    encoding: Encoding
    order: Tensor | None = None

    @staticmethod
    def decode(tensor: EncodedTensor) -> Weight:
        """Decode a stored tensor."""
        order = None if tensor.order is None else tensor.order.long()
        return Weight(tensor.decode(), tensor.encoding, order)

    def matrix(self, index: int) -> Weight:
        """One of the matrices of a stack."""
        order = self.order if self.order is None or self.order.dim() == 1 else self.order[index]
        return Weight(self.values[index], self.encoding, order)

    def rounded(self, x: Tensor) -> Tensor:
        """The input [n, columns] after the transform and rounding of this matrix. Activation groups follow the order of
        stored columns."""
        stored = x if self.order is None else x[:, self.order]
        rotation = self.encoding.transform.rotation
        stored = stored if rotation is None else rotate(stored, rotation)
        stored = round_activations(stored, self.encoding)
        stored = stored if rotation is None else rotate(stored, rotation)
        if self.order is None:
            return stored
        result = torch.empty_like(x)
        result[:, self.order] = stored
        return result
