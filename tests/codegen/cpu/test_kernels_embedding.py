"""The embedding kernel gathers exactly the rows that the encoding decodes to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.kernel_inputs import Matrix, guarded, random_tensor
from smc.codegen.cpu.build import build_kernel
from smc.codegen.kernels.layout import padded
from smc.codegen.kernels.specs import EmbeddingKernel
from smc.ir import Encoding
from smc.reference.exact import compute_exactly
from smc.targets import Level
from tests.codegen.encodings import ENCODINGS


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_rows_are_decoded(build: Any, level: Level, encoding: Encoding) -> None:
    kernel = build(level, build_kernel(EmbeddingKernel(encoding), "embedding", level))["embedding"]
    cases = ((33, 80, False), (1, 8, True), (50, 341, True), (64, 576, False), (20, 577, False))
    for (rows, columns, extreme), scale in zip(cases, (1.0, 1.0, 45.25, 1.0, 0.3), strict=True):
        matrix, stride = (
            Matrix(random_tensor(encoding, rows, columns, rows, extreme), level.family),
            padded(columns, 32),
        )
        tokens = guarded(np.array([rows - 1, 0, rows // 2, rows // 2, rows // 3], np.int32))
        out = guarded(np.full((5, stride), np.nan, np.float32))
        for begin, end in ((0, 2), (2, 5)):
            kernel(
                tokens, matrix.codes, matrix.scales, matrix.zeros, out,
                matrix.layout.padded_rows, columns, stride, scale, begin, end,
            )  # fmt: skip
        exact = compute_exactly("embedding", [torch.from_numpy(tokens), matrix.tensor], {})
        np.testing.assert_array_equal(out[:, :columns], exact.numpy() * np.float32(scale))
        expected = matrix.tensor.decode().numpy()[tokens] * np.float32(scale)
        if encoding.stores_minima and encoding.scales.dtype == "f32":
            # The kernel fuses scale * code + offset; only with float32 scales is the product not exact anyway.
            rounding = np.abs(expected).max() * 2.0**-23
            np.testing.assert_allclose(out[:, :columns], expected, rtol=0, atol=rounding * (1 if scale == 1 else 2))
        else:
            np.testing.assert_array_equal(out[:, :columns], expected)
        assert not out[:, columns:].any()
