"""Every op of the ir as a torch function of float32 tensors (smc/ir/ops.py has the table)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smc.ir import EncodedTensor, Encoding, inverse_frequencies, rotate
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
        rotation = self.encoding.rotation
        stored = stored if rotation is None else rotate(stored, rotation)
        stored = round_activations(stored, self.encoding)
        stored = stored if rotation is None else rotate(stored, rotation)
        if self.order is None:
            return stored
        result = torch.empty_like(x)
        result[:, self.order] = stored
        return result


Operand = Any
"""A Tensor, a Weight, or a tuple of tensors, as the op expects."""
Attributes = Mapping[str, Any]


def _embedding(inputs: Sequence[Operand], _: Attributes) -> Tensor:
    tokens, table = inputs
    return table.values[tokens.long()]


def _rms_norm(inputs: Sequence[Operand], attributes: Attributes) -> Tensor:
    x, weight = inputs
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + attributes["eps"]) * weight.values


def _linear(inputs: Sequence[Operand], attributes: Attributes) -> Tensor:
    x, weight, *rest = inputs
    bias = rest[0].values if attributes["bias"] else None
    result = F.linear(weight.rounded(x), weight.values, bias)
    return result + rest[-1] if attributes["residual"] else result


def _grouped_linear(inputs: Sequence[Operand], _: Attributes) -> Tensor:
    x, weights, index = inputs
    chosen, x = index.long(), weights.rounded(x)
    result = x.new_empty(*chosen.shape, weights.values.shape[1])
    for expert in torch.unique(chosen).tolist():
        token, place = (chosen == expert).nonzero(as_tuple=True)
        result[token, place] = F.linear(x[token], weights.values[expert])
    return result


def _rope(inputs: Sequence[Operand], attributes: Attributes) -> Tensor:
    x, positions = inputs
    frequencies = inverse_frequencies(attributes["head_dim"], attributes["theta"], attributes["scaling"])
    angles = positions.float()[:, None] * torch.from_numpy(frequencies)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x.view(x.shape[0], -1, attributes["head_dim"]).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).view(x.shape)


def _attention(inputs: Sequence[Operand], attributes: Attributes) -> Tensor:
    head_dim, window = attributes["head_dim"], attributes["window"]
    tokens = inputs[0].shape[0]
    q, k, v = (x.view(tokens, -1, head_dim).transpose(0, 1) for x in inputs)
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    visible = (distance >= 0) & (distance < (window or tokens))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=attributes["scale"], enable_gqa=True)
    return mixed.transpose(0, 1).reshape(tokens, -1)


def _gated_activation(inputs: Sequence[Operand], attributes: Attributes) -> Tensor:
    activations = {"silu": F.silu}
    gate, up = inputs
    return activations[attributes["activation"]](gate) * up


def _top_k(inputs: Sequence[Operand], attributes: Attributes) -> tuple[Tensor, Tensor]:
    # A stable sort, so that equal values keep the order of their indices.
    values, indices = torch.sort(inputs[0], dim=-1, descending=True, stable=True)
    return values[:, : attributes["k"]], indices[:, : attributes["k"]].int()


OPERATORS: dict[str, Callable[[Sequence[Operand], Attributes], Operand]] = {
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "grouped_linear": _grouped_linear,
    "rope": _rope,
    "attention": _attention,
    "silu": lambda inputs, _: F.silu(inputs[0]),
    "mul": lambda inputs, _: inputs[0] * inputs[1],
    "add": lambda inputs, _: inputs[0] + inputs[1],
    "gated_activation": _gated_activation,
    "softmax": lambda inputs, _: torch.softmax(inputs[0], dim=-1),
    "top_k": _top_k,
    "project": lambda inputs, attributes: inputs[0][attributes["index"]],
}
"""op → function of (inputs in the order of the ops table, attributes). Attention sees one whole sequence."""
