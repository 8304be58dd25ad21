"""Inputs permuted and rotated, bit for bit as the reference does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.kernel_inputs import guarded
from smc.codegen.cpu.build import build_kernel
from smc.codegen.kernels.layout import padded
from smc.codegen.kernels.specs import TransformKernel
from smc.ir import rotate
from smc.targets import Level

CASES = [
    (True, None, 341),
    (False, 2, 34),
    (False, 8, 80),
    (True, 16, 80),
    (False, 64, 192),
    (True, 256, 512),
]


@pytest.mark.parametrize(("permuted", "rotation", "columns"), CASES)
def test_bits_of_the_reference(build: Any, level: Level, permuted: bool, rotation: int | None, columns: int) -> None:
    kernel = build(level, build_kernel(TransformKernel(permuted, rotation), "transform", level))["transform"]
    rng, stride = np.random.default_rng(columns), padded(columns, 32)
    x, order = np.zeros((5, stride), np.float32), np.arange(stride, dtype=np.int32)
    x[:, :columns] = rng.standard_normal((5, columns))
    order[:columns] = rng.permutation(columns)
    out = guarded(np.full((5, stride), 9, np.float32))
    for begin, end in ((0, 2), (2, 5)):
        kernel(guarded(x), guarded(order), out, columns, stride, begin, end)
    expected = torch.from_numpy(x[:, order[:columns]] if permuted else x[:, :columns])
    expected = expected if rotation is None else rotate(expected, rotation)
    np.testing.assert_array_equal(out[:, :columns], expected.numpy())
    assert not out[:, columns:].any()
