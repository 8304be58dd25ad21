"""The engine's C parts for 64-bit ARM, under emulation: its drivers as on this machine, and what it says of CPUs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.emulation import emulated
from tests.runtime.engine.conftest import ENGINE, HERE, compile_c, write_artifact
from tests.runtime.engine.test_parts import FILES as PARTS
from tests.runtime.engine.test_phases import FILES as PHASES

ZIG = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static", "-fno-sanitize=undefined"]
FEATURES = ('-DFAKE_FUTURE_FEATURES="neon,quantum"', '-DFAKE_PLAIN_FEATURES="neon"')


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a driver of tests/runtime/engine with the engine's files that it needs → static executable."""
    folder = tmp_path_factory.mktemp("aarch64")

    def build(name: str) -> Path:
        if not (folder / name).exists():
            files = {"parts": PARTS, "phases": PHASES}.get(name)
            whole = [HERE / "fake_program.c", *sorted([*ENGINE.glob("*.c"), *ENGINE.glob("cpu/*.c")])]
            needed = whole if files is None else [ENGINE / file for file in files]
            compile_c(folder / name, [HERE / f"{name}.c", *needed], *FEATURES, compiler=ZIG)
        return folder / name

    return build


def run(cpu: str, program: Path, *arguments: object) -> str:
    command = emulated("aarch64", cpu, program, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


CPU_FEATURES = {
    "cortex-a53": {"fp-armv8", "neon", "aes", "sha2", "crc"},
    "cortex-a76": {"fp-armv8", "neon", "aes", "sha2", "crc", "lse", "fullfp16", "rdm", "dotprod"},
    "a64fx": {"fp-armv8", "neon", "aes", "sha2", "crc", "lse", "fullfp16", "rdm", "sve"},
}


@pytest.mark.arm64
@pytest.mark.parametrize("cpu", CPU_FEATURES)
def test_features(drivers: Callable[[str], Path], cpu: str) -> None:
    names = sorted({*CPU_FEATURES["cortex-a76"], "sve", "sve2", "i8mm", "bf16", "sme", "holodeck"})
    answers = run(cpu, drivers("parts"), "features", *names).split()
    assert {name for name, has in zip(names, answers, strict=True) if has == "1"} == CPU_FEATURES[cpu]


@pytest.mark.arm64
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_phases(drivers: Callable[[str], Path], threads: int) -> None:
    run("cortex-a53", drivers("phases"), "stress", threads, 20, threads)
    run("cortex-a53", drivers("phases"), "cancel", threads, 10)
    run("max", drivers("phases"), "stress", threads, 20, threads)


@pytest.mark.arm64
def test_steps_of_two_models_on_one_pool(drivers: Callable[[str], Path], tmp_path: Path) -> None:
    run("cortex-a72", drivers("steps"), write_artifact(tmp_path / "fake.smc"), 3, 3)
