"""Host programs: C without warnings, loops over equal layers, programs that grow with what is different only."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import smc
from smc.codegen import CompileOptions, compile_module
from smc.codegen.build import Program
from smc.codegen.building import ProgramKernels
from smc.codegen.cpu.backend import CpuBackend
from smc.codegen.cpu.link import engine_folder
from smc.codegen.objects import KernelObject
from smc.codegen.plan.planner import make_plan
from smc.codegen.program.kernel_table import program_kernels
from smc.codegen.schedule.memory import plan_memory
from smc.codegen.weights import place_weights
from smc.ir import Module
from smc.passes import FUSIONS, apply
from smc.targets import find_target
from tests.codegen.modules import block_with, different_widths, linear, mixed_bits
from tests.ir.models import tiny_module

MakeCheckpoint = Callable[..., tuple[Path, Any]]


def host_of(module: Module, folder: Path) -> str:
    """The host program, compiled once more with all warnings as errors."""
    compile_module(module, folder / "out.smc", CompileOptions(emit=folder / "listing", emit_kinds=("c",)))
    host = folder / "listing" / "program.c"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", find_target("native").zig_target]
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", "-I", str(engine_folder())]
    subprocess.run([*compiler, *flags, "-c", str(host), "-o", str(folder / "host.o")], check=True)
    check_tasks(host.read_text())
    return host.read_text()


def check_tasks(host: str) -> None:
    """Phases name their tasks in the table that profiles read: one after the other, all of them."""
    end = 0
    for first, count in re.findall(r"smc_phase_begin\(thread, &phase, (\d+), (\d+), blocks\);", host):
        assert int(first) == end
        end += int(count)
    (table,) = re.findall(r"smc_task tasks\[\] = \{\n(.*?)\n\};", host, re.DOTALL)
    assert len(table.splitlines()) == end
    assert f".task_count = {end}," in host


BIASES = {"attention_bias": True, "mlp_bias": True}


@pytest.mark.parametrize(
    ("changes", "chain"),
    [
        ({}, ["quantize-rtn:bits=4,symmetric=no"]),
        (BIASES, ["quantize-rtn:bits=8,group=16,include=v_proj", "convert:dtype=f16"]),
        ({"tie_word_embeddings": True}, ["convert:dtype=bf16"]),
    ],
    ids=["int4", "biases", "tied"],
)
def test_c_has_no_warnings(make_checkpoint: MakeCheckpoint, tmp_path: Path, changes: Any, chain: list[str]) -> None:
    module = smc.apply(smc.load_checkpoint(make_checkpoint(**changes)[0]), chain)
    host_of(apply(module, FUSIONS), tmp_path)
    host_of(module, tmp_path)


def test_c_of_blocks_that_are_not_in_place_has_no_warnings(tmp_path: Path) -> None:
    host_of(tiny_module(), tmp_path)
    host_of(block_with(lambda b, x: b.add("mul", linear(b, b.add("silu", x), x), x)), tmp_path)


def test_equal_layers_are_a_loop(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    module = different_widths(smc.load_checkpoint(make_checkpoint(num_hidden_layers=5)[0]), [80, 70, 60, 50, 40])
    host = host_of(apply(module, FUSIONS), tmp_path)
    assert re.findall(r"^static int (\w+)\(", host, re.MULTILINE) == ["embed", "block", "head"]
    assert host.count("for (int32_t i = 0; i < 5; i++) {") == 1
    (table,) = re.findall(r"block_calls\[5\] = \{\n(.*?)\n\};", host, re.DOTALL)
    widths = [96, 96, 64, 64, 64]  # padded to 32
    assert [re.search(r", (\d+), \d+\},$", row).group(1) for row in table.splitlines()] == list(map(str, widths))  # type: ignore[union-attr]


def test_phases_know_where_the_next_ones_read(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Streams of weights: of the next phase that has any, up to the head, behind which there is none."""
    module = smc.apply(smc.load_checkpoint(make_checkpoint(num_hidden_layers=2)[0]), ["quantize-rtn:bits=4"])
    host = host_of(apply(module, FUSIONS), tmp_path)
    calls = {}
    for name, rows in re.findall(r"_call (\w+)_calls\[\d+\] = \{\n(.*?),\n\};", host, re.DOTALL):
        calls[name] = json.loads(f"[{rows.translate(str.maketrans('{}', '[]'))}]")

    def streams(call: list[Any]) -> list[list[list[int]]]:
        return [[stream for stream in phase if any(stream)] for phase in call[0]]

    def stream(matrix: list[int]) -> list[int]:
        codes, _, _, _, _, rows, columns, _ = matrix
        return [codes, rows // 32, 32 * -(-columns // 32) * 32 // 2 + 64 * -(-columns // 32)]

    read = []  # what the phases with weights read
    for call in [*calls["block"], *calls["head"]]:
        matrices = [stream(value) for value in call[1:] if isinstance(value, list)]
        if len(matrices) == 1:
            read.append(matrices)
        else:
            q, k, v, o, gate, _, down = matrices
            read += [[q, k, v], [o], [gate], [down]]
    told = [phase for name in ("embed", "block", "head") for call in calls[name] for phase in streams(call)]
    assert [phase for phase, _ in itertools.groupby(told)] == [*read, []]


def test_layers_of_other_kinds_come_in_their_order(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    module = smc.load_checkpoint(make_checkpoint(num_hidden_layers=4)[0])
    host = host_of(smc.apply(module, ["quantize-rtn:bits=4,exclude=model.layers.1.*"]), tmp_path)
    calls = re.findall(r"i = (\d+); i < (\d+);.*?\n.*?\n    if \((\w+)\(", host)
    assert calls == [("0", "1", "block"), ("0", "1", "block_2"), ("1", "3", "block")]


def test_program_grows_with_what_is_different_only(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """30 widths and a random mix of 4 and 8 bits: at most 1.3 times the program of 30 equal layers."""
    module = smc.load_checkpoint(make_checkpoint(num_hidden_layers=30)[0])
    uniform = smc.compile(smc.apply(module, ["quantize-rtn:bits=4"]), out=tmp_path / "uniform.smc")
    mixed = smc.compile(mixed_bits(different_widths(module, list(range(80, 50, -1))), 30), out=tmp_path / "mixed.smc")
    assert mixed.program_bytes <= 1.3 * uniform.program_bytes


@pytest.mark.parametrize(
    "name",
    [
        'quotes " and \\ and %s',
        "**//\n#error not in a comment",
        '??/", 0}; #error a trigraph ended the string',
        "æ\x01\x7f漢\u2028",
    ],
)
def test_a_models_name_is_no_code(tmp_path: Path, name: str) -> None:
    """Names come from checkpoints: whatever they are, C sees text."""
    module = tiny_module()
    module.facts = replace(module.facts, name=name)
    host_of(module, tmp_path)
    with smc.load(tmp_path / "out.smc") as model:
        assert model.artifact.manifest.name == name
        assert model.engine.facts.name.decode() == name


OUTLINE = """
embed
  embedding
block
  if N > 2: rms_norm_i8_g128_s32
  rms_norm_i8_g128_s32 first; linear_i8, linear_i8, linear_i8
  if !(S->alone && S->splits == 1): rope_cache_h9_kv3_d64
  rope_cache_h9_kv3_d64 + attention_h9_kv3_d64
  if S->splits > 1: merge_h9_kv3_d64
  if last && S->wanted_count < N: memcpy memcpy
  if N > 2: quantize_i8_g128_s32
  quantize_i8_g128_s32 first; linear_i8
  if N > 2: rms_norm_i8_g128_s32
  rms_norm_i8_g128_s32 first; linear_i8 + linear_i8 + chained_gated_silu_i8_g128_s32
  linear_i8
head
  else: memcpy
  if N > 2: rms_norm_i8_g128_s32
  rms_norm_i8_g128_s32 first; linear_argmax_int4_g32_a8_128 + linear_i8
"""
"""Phases by condition, what threads make for themselves first, and of every task the kernels that it calls."""


def outline(host: str) -> str:
    """A program's functions as in OUTLINE."""
    lines = []
    for name, body in re.findall(r"^static int (\w+)\(.*?\{\n(.*?)^\}", host, re.MULTILINE | re.DOTALL):
        lines.append(name)
        for head, phase in re.findall(r"^  (.*?)\{[^\n]*\n((?:    .*\n)*)  \}", body, re.MULTILINE):
            if "smc_phase_begin" not in phase:
                continue
            condition = re.sub(r"^if \((.*)\) $", r"if \1: ", head).replace("else ", "else: ")
            before, _, tasks = phase.rpartition("switch (phase.task)")
            first = "".join(f"{kernel} first; " for kernel in re.findall(r"K->(\w+)", before))
            cases = [re.findall(r"K->(\w+)", task) for task in tasks.split("case ")[1:]]
            copies = " ".join(re.findall(r"memcpy", phase))
            lines.append("  " + condition + first + (", ".join(map(" + ".join, cases)) or copies))
    return "\n".join(["", *lines, ""])


def test_the_program_of_smollm2s_shape(make_checkpoint: MakeCheckpoint) -> None:
    """What a layer of the recipe int4 is made of; without building a kernel."""
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    module = smc.load_checkpoint(make_checkpoint(head_dim=64, tie_word_embeddings=True, **shape)[0])
    target = find_target("x86-64")
    plan = make_plan(apply(module, ["quantize-rtn:bits=4,activation_group=128", *FUSIONS]))
    schedule = CpuBackend().schedule(plan)
    kernels = program_kernels(schedule)
    objects = [KernelObject(s, level, f"{s.name()}__{level.name}", Path()) for level in target.levels for s in kernels]
    program = Program(schedule, plan_memory(schedule), place_weights(plan))
    host = CpuBackend().program(program, "0" * 64, ProgramKernels([], objects, objects), target)
    assert outline(host) == OUTLINE
    check_tasks(host)
