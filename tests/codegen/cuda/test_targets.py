"""Every target with a GPU links, with real machine code; listings, executables, and what `smc doctor` says."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import smc
from smc.ir import Module
from smc.targets import TARGETS
from tests.cuda_emulator import StandIn
from tests.runtime.conftest import VOCAB, byte_tokenizer

Make = Callable[..., tuple[Path, Any]]
MACHINES = {"x86_64": 62, "aarch64": 183, "cuda": 190}
"""Numbers in ELF files ("System V Application Binary Interface")."""

DOCTOR = "import sys; from smc.cli import main; sys.exit(main.run(['doctor', '--json']))"


def machine(data: bytes) -> int:
    assert data[:4] == b"\177ELF"
    return int.from_bytes(data[18:20], "little")


def with_tokenizer(make: Make) -> Module:
    module = smc.apply(smc.load_checkpoint(make(vocab_size=VOCAB, num_hidden_layers=1)[0]), ["quantize-rtn:bits=4"])
    result = module.copy()
    result.facts = replace(module.facts, tokenizer=byte_tokenizer().to_str())
    return result


def libraries(path: Path) -> tuple[set[str], list[tuple[int, int]]]:
    """The shared libraries that a program needs, and the versions of glibc."""
    data = path.read_bytes()
    versions = [(int(a), int(b)) for a, b in re.findall(rb"GLIBC_(\d+)\.(\d+)", data)]
    return {name.decode() for name in re.findall(rb"\0((?:lib|ld-)[\w.+-]+\.so\.\d+)\0", data)}, versions


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(name for name, target in TARGETS.items() if target.gpu_levels))
def test_a_target_links(make_checkpoint: Make, tmp_path: Path, target: str) -> None:
    """The artifact is for the CPU beside the GPU; listings are of all of its levels."""
    facts = TARGETS[target]
    listings = tmp_path / "listings"
    smc.compile(
        with_tokenizer(make_checkpoint), target, tmp_path / "model.smc", emit=listings, emit_kinds=("cu", "ptx", "sass")
    )
    with zipfile.ZipFile(tmp_path / "model.smc") as artifact:
        [program] = [artifact.read(name) for name in artifact.namelist() if name.endswith(".so")]
    assert machine(program) == MACHINES[facts.machine]
    found = {path.name for path in listings.iterdir()}
    assert {f"{level.name}.ptx" for level in facts.gpu_levels} <= found and "program.cu" in found
    codes = {path.name: machine(path.read_bytes()) for path in listings.glob("*.cubin")}
    assert codes == {f"{level.name}.cubin": MACHINES["cuda"] for level in facts.gpu_levels if not level.ptx}
    for level in facts.gpu_levels:
        text = (listings / f"{level.name}.ptx").read_text(encoding="utf-8")
        assert f".target sm_{level.architecture}" in text
    mark = re.findall(rb"smc_program_\w{32}", program)
    assert len(mark) >= len(facts.gpu_levels) and len(set(mark)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda-sm_80", "jetson-orin-gpu"])
def test_an_executable(make_checkpoint: Make, tmp_path: Path, target: str) -> None:
    """It is dynamic, and needs nothing but glibc 2.17; the one for x86-64 runs on the stand-in."""
    module = with_tokenizer(make_checkpoint)
    path = tmp_path / "model"
    smc.compile(module, target, path, standalone=True)
    assert machine(path.read_bytes()) == MACHINES[TARGETS[target].machine]
    needed, versions = libraries(path)
    assert {"libc.so.6"} <= needed and not any("cuda" in name for name in needed - {"libcuda.so.1"})
    assert versions and max(versions) <= (2, 17)
    if target == "jetson-orin-gpu":
        return
    stand_in = StandIn.of(module, tmp_path / "gpu", machine_code=True)
    places = {"LD_LIBRARY_PATH": str(stand_in.folder), "SMC_EMULATOR_PROGRAMS": str(stand_in.folder)}
    command = [str(path), "abc", "--max-tokens", "3", "--temperature", "0"]
    run = subprocess.run(command, env=places, capture_output=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    without = subprocess.run(command, env={}, capture_output=True, timeout=60, check=False)
    assert without.returncode == 2 and b"there is no NVIDIA driver here (libcuda.so.1)" in without.stderr


def test_the_doctor_names_compiler_and_driver(make_checkpoint: Make, tmp_path: Path) -> None:
    module = smc.apply(smc.load_checkpoint(make_checkpoint(num_hidden_layers=1)[0]), ["quantize-rtn:bits=4"])
    run = StandIn.of(module, tmp_path / "gpu").python(DOCTOR, settings="version=12040")
    found = {check["name"]: check["found"] for check in json.loads(run.stdout)["toolchain"]}
    assert found["GPU compiler"].startswith("NVRTC 12.")
    assert found["GPU driver"] == "for CUDA 12.4 (12.0 or newer is needed)"
