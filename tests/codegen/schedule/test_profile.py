"""What programs say of their tasks, for profiles: all weights once, the multiply-adds of the shapes, all widths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import smc
from smc.codegen.cpu.backend import CPU_TRAITS
from smc.codegen.kernels.layout import MatrixLayout
from smc.codegen.plan.planner import make_plan
from smc.codegen.plan.work import NO_WORK, Work
from smc.codegen.schedule.fast_paths import make_schedule
from smc.codegen.schedule.profile import TaskProfile, profile_tasks
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.weights import place_weights
from smc.ir import Module
from smc.passes import FUSIONS, apply
from tests.codegen.modules import different_widths, mixed_bits

MakeCheckpoint = Callable[..., tuple[Path, Any]]


@pytest.fixture
def module(make_checkpoint: MakeCheckpoint) -> Module:
    return apply(smc.load_checkpoint(make_checkpoint(num_hidden_layers=3)[0]), ["quantize-rtn:bits=4"])


def tasks_of(module: Module) -> tuple[Schedule, list[TaskProfile]]:
    schedule = make_schedule(make_plan(apply(module, FUSIONS)), CPU_TRAITS)
    return schedule, profile_tasks(schedule)


def numbers(work: Work) -> list[int]:
    """What adds up."""
    fields = ("weight_bytes", "token_bytes", "token_macs", "cache_reads", "cache_macs", "cache_writes")
    return [getattr(work, field) for field in fields]


def by_name(tasks: list[TaskProfile]) -> dict[str, TaskProfile]:
    return {f"{task.name} {task.kernel}": task for task in tasks}


def test_every_task_in_the_order_of_phases(module: Module) -> None:
    schedule, tasks = tasks_of(module)
    planned = [
        (function.plan.name, number, "+".join(dict.fromkeys(call.operation.kind for call in task.calls)))
        for function in schedule.functions
        for number, phase in enumerate(function.phases)
        for task in phase.tasks
    ]
    assert [(t.function, t.phase, t.kernel) for t in tasks if t.name != "gather"] == planned
    assert {t.name for t in tasks if t.head} == {"gather", "norm", "lm_head"}


def test_all_weights_that_a_token_multiplies(module: Module) -> None:
    schedule, tasks = tasks_of(module)
    plan = schedule.plan
    works = [work for t in tasks for work in (t.all, t.wanted)]
    assert sum(work.weight_bytes for work in works) == place_weights(plan).token_bytes
    matrices = [p for p in plan.matrices() if "embed" not in p.name]
    assert sum(work.token_macs for work in works) == sum(p.shape[0] * p.shape[1] for p in matrices)
    assert all(t.work.integer == (t.work.token_macs > 0) for t in tasks)


def test_what_the_last_layer_does_for_wanted_tokens_only(make_checkpoint: MakeCheckpoint) -> None:
    """Behind the cache's keys and values, which all tokens have; in the other layers all tokens are worked on."""
    path, _ = make_checkpoint(num_hidden_layers=4)
    _, tasks = tasks_of(smc.apply(smc.load_checkpoint(path), ["quantize-rtn"]))
    names = [t.name for t in tasks if t.function == "block"]
    assert names[names.index("gather") - 1 :][:2] == ["attention", "gather"]
    found = by_name(tasks)
    for name in ("input_layernorm rms_norm", "k_proj linear", "v_proj linear", "attention rope_cache"):
        assert found[name].wanted == NO_WORK
    for name in ("q_proj linear", "attention attention", "o_proj linear", "gate_proj+up_proj linear+gated_silu"):
        every, wanted = (numbers(work) for work in (found[name].all, found[name].wanted))
        assert sum(wanted) > 0
        assert every == [3 * number for number in wanted]
    assert found["lm_head linear"].all == NO_WORK


def test_numbers_of_layers_of_different_widths(make_checkpoint: MakeCheckpoint) -> None:
    widths = [80, 70, 33]
    module = different_widths(smc.load_checkpoint(make_checkpoint(num_hidden_layers=3)[0]), widths)
    schedule, tasks = tasks_of(mixed_bits(module, 3))
    plan = schedule.plan
    found = by_name(tasks)
    hidden = plan.hidden
    up = found["gate_proj+up_proj linear+gated_silu"]
    assert up.all.token_macs == 2 * hidden * sum(widths[:2])
    assert up.wanted.token_macs == 2 * hidden * widths[2]
    padded = [96, 96, 64]
    # The input's codes, scales and sums, twice per layer; what is made of the outputs, which stay in scratch, in
    # the form that the next linear reads.
    row = -(-hidden // 32) * 32
    linears = 2 * 3 * (row + 4 * row // 32 + 4 * row // 32)
    assert up.all.token_bytes + up.wanted.token_bytes == linears + sum(w + 4 * w // 32 + 4 * w // 32 for w in padded)
    names = [name for name in plan.module.parameters if name.endswith(("gate_proj.weight", "up_proj.weight"))]
    parameters = [plan.module.parameters[name] for name in names]
    packed = sum(MatrixLayout(p.encoding, *p.shape).total_bytes for p in parameters)
    assert up.all.weight_bytes + up.wanted.weight_bytes == packed
    assert list(up.work.encodings) == list(dict.fromkeys(str(p.encoding) for p in parameters))
    assert up.texts() == ["block", "gate_proj+up_proj", f"linear+gated_silu {', '.join(up.work.encodings)}"]


def test_attention(make_checkpoint: MakeCheckpoint) -> None:
    path, model = make_checkpoint(num_hidden_layers=3)
    config = model.config
    _, tasks = tasks_of(smc.load_checkpoint(path))
    found = by_name(tasks)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = config.hidden_size // heads
    cached = 3 * 2 * kv_heads * -(-head_dim // 16) * 16
    attention, write = found["attention attention"], found["attention rope_cache"]
    assert attention.all.cache_reads + attention.wanted.cache_reads == cached
    assert (attention.work.cache_writes, attention.work.weight_bytes) == (0, 0)
    assert attention.all.cache_macs + attention.wanted.cache_macs == 3 * 2 * heads * head_dim  # q · k, then p · v
    assert (write.work.cache_reads, write.work.cache_writes) == (0, cached)
    assert not attention.work.integer
