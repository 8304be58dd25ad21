"""The kernels around experts: which are chosen, where rows lie, and what comes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.kernel_inputs import guarded
from smc.codegen.cpu.build import build_kernel
from smc.codegen.kernels.abi import F32_FORM
from smc.codegen.kernels.layout import padded
from smc.codegen.kernels.specs import CombineKernel, DispatchKernel, RouteKernel
from smc.reference.exact import compute_exactly
from smc.targets import Level


def router(tokens: int, experts: int) -> np.ndarray:
    """Logits with equals among them, in padded rows."""
    logits = np.zeros((tokens, padded(experts, 32)), np.float32)
    logits[:, :experts] = np.random.default_rng(experts).integers(-9, 9, (tokens, experts)) / np.float32(3)
    return logits


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("experts", "chosen", "tokens"), [(4, 2, 1), (33, 1, 7), (60, 8, 40), (20, 18, 3), (5, 5, 9)])
def test_route(build: Any, level: Level, experts: int, chosen: int, tokens: int, normalized: bool) -> None:
    kernel = build(level, build_kernel(RouteKernel(experts, chosen, normalized), "route", level))["route"]
    logits, most = router(tokens, experts), min(experts, tokens * chosen)
    weights = guarded(np.full((tokens, padded(chosen, 32)), 9, np.float32))
    groups = guarded(np.full((most, 3), 9, np.int32))
    rows, places = (guarded(np.full(tokens * chosen, 9, np.int32)) for _ in range(2))
    kernel(guarded(logits), weights, groups, rows, places, tokens, logits.shape[1], 0, 1)
    attributes = {"k": chosen, "normalized": normalized}
    expected, choice = compute_exactly("route", [torch.from_numpy(logits[:, :experts])], attributes)
    np.testing.assert_array_equal(weights[:, :chosen], expected.numpy())
    assert not weights[:, chosen:].any()
    # In numpy: rows by expert, then by token.
    flat = choice.numpy().reshape(-1)
    order = np.argsort(flat, kind="stable")
    np.testing.assert_array_equal(rows, order // chosen)
    np.testing.assert_array_equal(places, np.argsort(order))
    numbers, firsts, counts = np.unique(flat[order], return_index=True, return_counts=True)
    used = groups[: len(numbers)]
    np.testing.assert_array_equal(used, np.stack([numbers, firsts, counts], axis=1))
    assert not groups[len(numbers) :].any()


def test_route_chooses_an_expert_where_no_logit_is_a_number(build: Any, level: Level) -> None:
    kernel = build(level, build_kernel(RouteKernel(5, 2, True), "route", level))["route"]
    logits, weights = np.full((1, 32), np.nan, np.float32), np.zeros((1, 32), np.float32)
    groups, rows, places = np.zeros((2, 3), np.int32), np.zeros(2, np.int32), np.zeros(2, np.int32)
    kernel(logits, weights, groups, rows, places, 1, 32, 0, 1)
    assert groups.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_rows_go_to_experts_and_come_back(build: Any, level: Level) -> None:
    specs = (DispatchKernel((F32_FORM,)), CombineKernel(3), CombineKernel(3, residual=True))
    kernels = build(level, *(build_kernel(spec, spec.name(), level) for spec in specs))
    rng, tokens, stride = np.random.default_rng(0), 7, 96
    x = rng.standard_normal((tokens, stride)).astype(np.float32)
    places = rng.permutation(3 * tokens).astype(np.int32)
    rows = (np.argsort(places) // 3).astype(np.int32)
    spread = guarded(np.full((3 * tokens, stride), 9, np.float32))
    for first, count in ((0, 4), (4, 17)):  # of two experts
        for begin, end in ((0, 1), (1, count)):
            own = spread[first : first + count]
            kernels["dispatch_f32"](guarded(x), guarded(rows), own, first, count, stride, begin, end)
    np.testing.assert_array_equal(spread, x[rows])
    weights = np.zeros((tokens, 32), np.float32)
    weights[:, :3] = rng.random((tokens, 3))
    made = rng.standard_normal(spread.shape).astype(np.float32)
    out = guarded(np.full((tokens, stride), 9, np.float32))
    for begin, end in ((0, 2), (2, 7)):
        kernels["combine_3"](guarded(made), guarded(weights), guarded(places), out, 32, stride, begin, end)
    gathered = torch.from_numpy(made[places.reshape(tokens, 3)])
    expected = compute_exactly("combine", [gathered, torch.from_numpy(weights[:, :3].copy())], {})
    np.testing.assert_array_equal(out, expected.numpy())
    more = guarded(np.full((tokens, stride), 9, np.float32))
    kernels["combine_residual_3"](
        guarded(made), guarded(weights), guarded(places), guarded(x), more, 32, stride, 0, tokens
    )
    np.testing.assert_array_equal(more, out + x)
    plain = (gathered.double() * torch.from_numpy(weights[:, :3, None].copy())).sum(1)
    np.testing.assert_allclose(out, plain.numpy(), rtol=1e-5, atol=1e-5)
