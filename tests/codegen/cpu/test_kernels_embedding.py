"""The embedding kernel gathers exactly the rows that the encoding decodes to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from smc.codegen.cpu.build import build_kernel
from smc.codegen.kernels.layout import padded
from smc.codegen.kernels.specs import EmbeddingKernel
from smc.ir import Encoding
from smc.reference.exact import compute_exactly
from smc.targets import Level
from tests.codegen.cpu.kernels import Matrix, guarded, random_tensor
from tests.codegen.encodings import ENCODINGS


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_rows_are_decoded(build: Any, level: Level, encoding: Encoding) -> None:
    kernel = build(level, build_kernel(EmbeddingKernel(encoding), "embedding", level))["embedding"]
    for rows, columns, extreme in ((33, 80, False), (1, 8, True), (50, 341, True), (64, 576, False), (20, 577, False)):
        matrix, stride = (
            Matrix(random_tensor(encoding, rows, columns, rows, extreme), level.family),
            padded(columns, 32),
        )
        tokens = guarded(np.array([rows - 1, 0, rows // 2, rows // 2, rows // 3], np.int32))
        out = guarded(np.full((5, stride), np.nan, np.float32))
        for begin, end in ((0, 2), (2, 5)):
            kernel(
                tokens, matrix.codes, matrix.scales, matrix.zeros, out,
                matrix.layout.padded_rows, columns, stride, begin, end,
            )  # fmt: skip
        exact = compute_exactly("embedding", [torch.from_numpy(tokens), matrix.tensor], {})
        np.testing.assert_array_equal(out[:, :columns], exact.numpy())
        expected = matrix.tensor.decode().numpy()[tokens]
        if encoding.stores_minima and encoding.scales.dtype == "f32":
            # The kernel fuses scale * code + offset; only with float32 scales is the product not exact anyway.
            np.testing.assert_allclose(out[:, :columns], expected, rtol=0, atol=np.abs(expected).max() * 2.0**-23)
        else:
            np.testing.assert_array_equal(out[:, :columns], expected)
        assert not out[:, columns:].any()
