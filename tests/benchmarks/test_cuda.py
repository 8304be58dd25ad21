"""The kit for whoever has a GPU, from end to end on the stand-in: its programs run from Python's own library alone."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from benchmarks.cuda import MOST_BYTES, _add_llama_bench, cli
from benchmarks.cuda_kit import build, engine
from benchmarks.cuda_kit.gguf import write_gguf
from smc.codegen.cuda import images
from smc.runtime import interface
from smc.targets import GpuLevel
from tests.cuda_emulator import StandIn, name_of


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small kit, whose machine code is for the stand-in."""
    folder = tmp_path_factory.mktemp("gpu") / "kit"
    with patch.object(images, "build_image", name_of), patch.object(build, "build_image", name_of):
        size = build.make_kit(folder, small=True)
    assert size < 4 << 20
    stand_in = StandIn(folder, folder)
    for text in sorted(folder.glob("*.cu")):
        stand_in.with_program(text.read_text(encoding="utf-8"))
    return folder


def run(kit: Path, out: Path, settings: str = "") -> subprocess.CompletedProcess[str]:
    """run.py as somebody else runs it: nothing of this repository is in its path."""
    command = [sys.executable, "-I", "-S", str(kit / "run.py"), "--small", "--out", str(out)]
    places = {"LD_LIBRARY_PATH": str(kit), "SMC_EMULATOR_PROGRAMS": str(kit), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, env={**places, "SMC_EMULATOR": settings}, capture_output=True, text=True, check=False, timeout=500
    )


def test_the_kit_from_end_to_end(kit: Path, tmp_path: Path) -> None:
    done = run(kit, tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["results"]
    assert [name for name, result in results.items() if "failed" in result] == [], results
    assert results["bits"]["compared"] == 4 and results["bits"]["different"] == []
    assert results["probe"]["capability"] == 80 and results["probe"]["read_gb_per_s"] > 0
    [product] = results["probe"]["products"]
    assert {"launches_us", "graph_us", "resident_us"} <= set(product)
    assert {row["kind"] for row in results["speed"]["rows"]} == {"prefill", "decode behind 8", "decode, 2 sequences"}
    assert results["speed"]["rows"][1]["share_of_bandwidth"] > 0
    assert "skipped" in results["sanitizer"] and "skipped" in results["peers"]["llama.cpp"]
    assert "4 runs compared, 0 differ" in done.stdout


SANITIZER = """#!/bin/sh
# --tool NAME --error-exitcode 9 python run.py --part once
echo "$2 saw nothing" >&2
exec "$5" -I -S "$6" "$7" "$8"
"""
LLAMA_BENCH = """#!/bin/sh
test "$(head -c 4 "$2")" = GGUF && echo '[{"avg_ts": 1.5}]'
"""


@pytest.mark.slow
def test_every_part_in_full(tmp_path: Path) -> None:
    """The command's own kit, with machine code, all encodings, caches and modes, and tools beside; tiny models."""
    folder, tools, texts = tmp_path / "kit", tmp_path / "tools", []
    compiler = images.build_image

    def recorded(text: str, level: GpuLevel) -> bytes:
        texts.append(text)
        return compiler(text, level)

    tools.mkdir()
    for name, script in (("compute-sanitizer", SANITIZER), ("llama-bench", LLAMA_BENCH)):
        (tools / name).write_text(script, encoding="utf-8")
        (tools / name).chmod(0o755)
    tiny = {"tiny": {**build.TINY, "num_hidden_layers": 1}}
    with (
        patch.object(images, "build_image", recorded),
        patch.object(build, "build_image", recorded),
        patch.object(build, "SHAPES", tiny),
    ):
        options = ["--target", "cuda-sm_80", "--llama-bench", str(tools / "llama-bench")]
        made = CliRunner().invoke(cli, ["--kit", str(folder), *options])
    assert made.exit_code == 0, made.output
    for text in texts:
        StandIn(folder, folder).with_program(text, races=False)
    description = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
    for model in description["models"][:3]:
        model["chunks"] = [[150, 150]]  # no token by itself, for the stand-in takes long
    (folder / "kit.json").write_text(json.dumps(description), encoding="utf-8")

    def part(name: str) -> dict[str, Any]:
        command = [sys.executable, "-I", "-S", str(folder / "run.py"), "--part", name]
        places = {"LD_LIBRARY_PATH": str(folder), "SMC_EMULATOR_PROGRAMS": str(folder)}
        env = {**places, "PATH": f"{tools}:/usr/bin:/bin"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    assert part("bits") == {"compared": 3 * 2 * 14, "different": []}
    checks = part("sanitizer")
    assert {name: check["status"] for name, check in checks.items()} == {"memcheck": 0, "racecheck": 0}
    assert '{"ran": "codes"}' in checks["memcheck"]["said"]
    kinds = ["prefill", "decode behind 64", "decode, 8 sequences", "decode, 32 sequences"]
    assert [row["kind"] for row in part("speed")["rows"]] == kinds
    (tools / "llama-bench").unlink()  # the kit's own runs
    assert part("peers")["llama.cpp"] == [{"model": "tiny", "result": [{"avg_ts": 1.5}]}]


def test_llama_bench_is_left_out_where_it_does_not_fit(tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    program.write_bytes(b"1234")
    assert _add_llama_bench(tmp_path / "kit", program, MOST_BYTES - 3) == 0 and not (tmp_path / "kit").exists()


def test_files_for_llama_cpp(tmp_path: Path) -> None:
    """gguf, of llama.cpp's authors, reads what the kit writes."""
    gguf = pytest.importorskip("gguf")
    write_gguf(tmp_path / "tiny.gguf", {**build.TINY, "head_dim": 16})
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    assert shapes["blk.1.attn_k.weight"] == (64, 32) and shapes["output.weight"] == (64, 256)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32", "Q4_0"}
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    weights = gguf.quants.dequantize(reader.tensors[0].data, gguf.GGMLQuantizationType.Q4_0)
    assert 0.05 < abs(weights).mean() < 0.1


@pytest.mark.slow
def test_other_bits_and_failures_are_reported(kit: Path, tmp_path: Path) -> None:
    """A kit that expects something else; and a kernel that fails takes its part of the report, not the others."""
    description = json.loads((kit / "kit.json").read_text(encoding="utf-8"))
    try:
        changed = json.loads(json.dumps(description))
        changed["models"][0]["expected"]["f16"] = "0" * 64
        (kit / "kit.json").write_text(json.dumps(changed), encoding="utf-8")
        run(kit, tmp_path / "report.json", "fail_launch=300")
    finally:
        (kit / "kit.json").write_text(json.dumps(description), encoding="utf-8")
    results = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["results"]
    assert "unspecified launch failure" in results["bits"]["failed"] or len(results["bits"]["different"]) == 4
    assert "unspecified launch failure" in json.dumps(results) and "skipped" in results["peers"]["llama.cpp"]


def test_without_a_driver_every_part_says_so(kit: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(kit / "run.py"), "--small", "--out", str(tmp_path / "report.json")]
    done = subprocess.run(command, env={"PATH": "/usr/bin"}, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0
    results = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["results"]
    assert "libcuda.so.1" in results["probe"]["failed"] and "no NVIDIA driver" in results["bits"]["failed"]


def test_the_kit_knows_the_engine() -> None:
    """Its structures are those of the runtime, which it can't import."""
    assert engine.ABI_VERSION == interface.ABI_VERSION
    for name in ("Options", "Info", "Batch"):
        ours, theirs = getattr(engine, name), getattr(interface, name)
        assert ctypes.sizeof(ours) == ctypes.sizeof(theirs), name
        for field, *_ in theirs._fields_:
            assert getattr(ours, field).offset == getattr(theirs, field).offset, f"{name}.{field}"
    assert ctypes.sizeof(engine.Token) == interface.TOKEN.itemsize
    for field, *_ in engine.Api._fields_:
        assert getattr(engine.Api, field).offset == getattr(interface.Api, field).offset, field
