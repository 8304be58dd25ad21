"""A Hadamard transform of activations, in blocks of columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smc.ir.ops.registry import TypeFault, op
from smc.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def _result(x: TensorType, block: int) -> TensorType:
    width = x.shape[1]
    if block < 2 or block & (block - 1):
        raise TypeFault(f"hadamard has blocks of a power of two, not {block}")
    if not isinstance(width, int) or width % block:
        raise TypeFault(f"hadamard in blocks of {block} takes a multiple of it, not {width} columns")
    return x


@op(ranks={"x": 2}, result=_result)
def hadamard(x: Tensor, *, block: int) -> Tensor:
    """x [n, d] → x, every `block` columns times the Hadamard matrix in natural order over its root; its own inverse."""
    from smc.ir.encoded_tensor import rotate

    return rotate(x, block)
