"""Parameters as the torch functions of ops take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smc.ir import EncodedTensor, Encoding, rotate
from smc.reference.activations import round_activations


@dataclass(frozen=True)
class Weight:
    """A parameter ready to compute with: decoded float32 values, and what its encoding does to the activations."""

    values: Tensor
    encoding: Encoding
    order: Tensor | None = None

    @staticmethod
    def decode(tensor: EncodedTensor) -> Weight:
        """Decode a stored tensor."""
        order = None if tensor.order is None else tensor.order.long()
        return Weight(tensor.decode(), tensor.encoding, order)

    def rounded(self, x: Tensor) -> Tensor:
        """The input [n, columns] as this matrix sees it. Activation groups follow the order of the stored columns."""
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
