"""Another kind of machine is a backend: the plan, the ops and their arguments know nothing of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import smc
from smc.codegen.backends import BACKENDS, find_backend
from smc.codegen.build import Program
from smc.codegen.plan.plan import Plan
from smc.codegen.plan.planner import make_plan
from smc.codegen.schedule.memory import plan_memory
from smc.codegen.weights import place_weights
from smc.passes import FUSIONS, apply
from smc.targets import find_target
from tests.codegen.backends.launches import LaunchBackend

MakeCheckpoint = Callable[..., tuple[Path, Any]]


@pytest.fixture
def launches(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, str]:
    """A tiny model for a target of the second backend, as the pipeline makes its text."""
    monkeypatch.setitem(BACKENDS, "launches", LaunchBackend())
    target = replace(find_target("x86-64"), backend="launches")
    chain = ["quantize-rtn:bits=4,activation_group=128", *FUSIONS]
    plan = make_plan(apply(smc.load_checkpoint(make_checkpoint()[0]), chain))
    backend = find_backend(target)
    schedule = backend.schedule(plan)
    program = Program(schedule, plan_memory(schedule), place_weights(plan))
    return plan, backend.program(program, "0" * 64, None, target)


def test_every_operation_is_a_launch(launches: tuple[Plan, str]) -> None:
    plan, text = launches
    layers = sum(len(function.operations) for function, _ in plan.order)
    assert len(re.findall(r"^  (?:if .*: )?\w.*<.*>\(", text, re.MULTILINE)) == layers + 1  # the head's largest logit
    assert text.count("\n  gather wanted rows of x\n") == 1


def test_a_layer_as_launches(launches: tuple[Plan, str]) -> None:
    """Buffers are places, weights are places, and what a step brings has its name; no thread, no private scratch."""
    _, text = launches
    first = text.split("\nblock ")[1]
    phases = [re.findall(r"(\w+)(?:\[\w+\]|\[cache dtype\])?<(.*?)>\(", phase) for phase in first.split("  wait")]
    assert phases[:-1] == [
        [("rms_norm_i8_g128_s32", "n")],
        [("LinearKernel", "2"), ("LinearKernel", "1"), ("LinearKernel", "1")],
        [("rope_cache_h4_kv2_d12", "tiles*2")],
        [("attention_h4_kv2_d12", "tiles*2*splits")],
        [("merge_h4_kv2_d12", "tiles*4")],
        [("quantize_i8_g128_s32", "n")],
        [("LinearKernel", "2")],
        [("rms_norm_i8_g128_s32", "n")],
        [("LinearKernel", "3"), ("LinearKernel", "3")],
        [("gated_silu_f32", "n*3")],
        [("quantize_i8_g128_s32", "n")],
        [("LinearKernel", "2")],
    ]
    norm = re.search(r"rms_norm\w+<n>\((.*)\)", first)
    assert norm is not None
    arguments = dict(pair.split("=") for pair in norm[1].split(", "))
    assert list(arguments) == ["x", "weight", "codes_0", "scales_0", "sums_0", "tokens", "width", "stride", "eps"]
    assert (arguments["x"], arguments["width"], arguments["stride"]) == ("x", "48", "64")
    assert re.fullmatch(r"weights\+\d+", arguments["weight"]) and re.fullmatch(r"arena\+\d+", arguments["codes_0"])
