"""The arithmetic that kernels are built of: what is fused, what is rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from smc.codegen.cpu.builder import Kernel, fma, rounded_product
from smc.codegen.kernels.signature import Signature
from smc.targets import Level


@pytest.mark.parametrize("lanes", [1, 16])
def test_fused_and_rounded_products(build: Any, level: Level, lanes: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(lanes).astype(np.float32) for _ in range(2))
    # What a rounded product leaves is 0, and what an exact one leaves is its rounding error.
    c = -(a * b)
    kernels = []
    for name, multiply_add in (("fused", fma), ("rounded", lambda a, b, c: rounded_product(a, b) + c)):
        k = Kernel(name, Signature.of("const float *a", "const float *b", "const float *c", "float *out"))
        pointers = [k.pointer(n) for n in ("a", "b", "c", "out")]
        k.store(pointers[3], 0, multiply_add(*(p.load(0, lanes) for p in pointers[:3])))
        kernels.append(k)
    functions = build(level, *kernels)
    errors = (a.astype(np.float64) * b + c).astype(np.float32)
    assert errors.any()
    for name, expected in (("fused", errors), ("rounded", np.zeros(lanes, np.float32))):
        out = np.full(lanes, np.nan, np.float32)
        functions[name](a, b, c, out)
        np.testing.assert_array_equal(out, expected)
