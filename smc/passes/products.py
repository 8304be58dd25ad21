"""`coarse_products`: matrix products of float32 with factors in bfloat16, for statistics that are noisy anyway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def coarse_products() -> Iterator[None]:
    """While the block runs, torch may round factors of float32 products to bfloat16 where the machine multiplies these
    faster; sums stay float32."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
