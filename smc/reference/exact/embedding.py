"""Rows of a table, decoded."""

from __future__ import annotations

from torch import Tensor

from smc.ir import EncodedTensor
from smc.reference.exact.linear import rows_of
from smc.reference.exact.registry import exact, no_kernel
from smc.reference.float32 import fma


@exact("embedding")
def embedding(tokens: Tensor, table: EncodedTensor, *, scale: float) -> Tensor:
    """The tokens' rows, an offset added by one fma; then times the scale."""
    if table.encoding.transform.permuted or table.encoding.transform.rotation:
        raise no_kernel(f"an embedding in encoding {table.encoding}")
    rows = rows_of(table, tokens.long())
    if rows.offsets is None:
        return rows.decode() * scale
    assert rows.codes is not None and rows.scales is not None
    values = fma(rows.codes.float(), rows.scales[..., None], rows.offsets[..., None])
    return values.flatten(1)[:, : table.shape[1]] * scale
