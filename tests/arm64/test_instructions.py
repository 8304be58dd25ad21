"""Kernels for 64-bit ARM use no instruction that their level lacks: an assembler for just the level takes them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from smc.codegen.cpu.build import build_kernel
from smc.targets import TARGETS, Level
from tests.codegen.cpu.kernels import compiled
from tests.codegen.cpu.test_kernels_objects import KERNELS

BETTER, WORSE = TARGETS["arm64"].levels[:-1], TARGETS["arm64"].levels[1:]
PAIRS = list(zip(BETTER, WORSE, strict=True))


def write_assembly(level: Level, folder: Path) -> list[str]:
    """Every kernel as LLVM writes it: paths of assembly files."""
    folder.mkdir()
    for number, spec in enumerate(KERNELS):
        text = compiled(build_kernel(spec, f"kernel{number}", level), level).inspect_source("asm")
        assert ".arch" not in text  # what would let the assembler take more
        (folder / f"{number}.s").write_text(text)
    return [str(path) for path in sorted(folder.iterdir())]


def assemble(level: Level, files: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # zig's "generic" is the first 64-bit ARM, which has the floor's features.
    cpu = "+".join(["generic", *(feature for feature in level.features if feature not in WORSE[-1].features)])
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", f"-mcpu={cpu}", "-c", *files]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("assembly")
    return {level.name: write_assembly(level, folder / level.name) for level in TARGETS["arm64"].levels}


@pytest.mark.arm64
@pytest.mark.parametrize("level", TARGETS["arm64"].levels, ids=lambda level: level.name)
def test_instructions_are_the_levels_own(level: Level, assembly: dict[str, list[str]], tmp_path: Path) -> None:
    done = assemble(level, assembly[level.name], tmp_path)
    assert done.returncode == 0, done.stderr[:2000]


@pytest.mark.arm64
@pytest.mark.parametrize(("better", "worse"), PAIRS, ids=lambda level: level.name)
def test_foreign_instructions_would_be_seen(
    better: Level, worse: Level, assembly: dict[str, list[str]], tmp_path: Path
) -> None:
    done = assemble(worse, assembly[better.name], tmp_path)
    assert done.returncode != 0
    assert re.search(f"instruction requires: (matrix multiply|{better.name})", done.stderr)
