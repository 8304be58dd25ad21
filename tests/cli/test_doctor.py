"""`smc doctor`: what it finds out, and that a missing piece comes with the command that mends it."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path

import numpy
import pytest

from smc.cli import doctor, main
from smc.targets import TARGETS

INTEL = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse4_1 sse4_2 avx avx2 fma f16c bmi1 bmi2 popcnt abm avx_vnni

processor\t: 1
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd asimdhp asimddp i8mm
CPU part\t: 0xd0b
"""
M1 = """machdep.cpu.brand_string: Apple M1
hw.memsize: 8589934592
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 0
hw.optional.arm64: 1
"""


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    status = main.run(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == (0 if report["ready"]["running"] else 2)
    found = {check["name"]: check["found"] for part in ("software", "machine", "toolchain") for check in report[part]}
    assert found["cores"].startswith(f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} ")


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    main.run(["doctor"])
    output = capsys.readouterr().out
    assert "ready for running models" in output
    assert "feature level" in output


def test_cpuinfo_of_x86() -> None:
    model, features = doctor.read_cpuinfo(INTEL)
    assert model == "Some CPU @ 2.00GHz"
    wanted = {"sse4.1", "sse4.2", "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "popcnt", "lzcnt", "avxvnni"}
    assert wanted <= features


def test_cpuinfo_of_arm() -> None:
    features = doctor.read_cpuinfo(ARM)[1]
    assert {"dotprod", "i8mm", "fullfp16"} <= features
    assert all(set(level.features) <= features for level in TARGETS["arm64"].levels)


def test_sysctl_of_macos() -> None:
    model, features, memory = doctor.read_sysctl(M1)
    assert (model, memory) == ("Apple M1", 8 << 30)
    levels = [level.name for level in TARGETS["arm64-macos"].levels if set(level.features) <= features]
    assert levels == ["dotprod", "neon"]
    assert doctor.read_sysctl("") == ("unknown", {"fp-armv8", "neon"}, 0)


def test_requirement_that_is_there() -> None:
    check = doctor.check_requirement("numpy>=1.0")
    assert check == doctor.Check("numpy", numpy.__version__, "running")


def test_requirement_of_another_version() -> None:
    check = doctor.check_requirement('numpy==0.0.1; extra == "compile"')
    assert check is not None
    assert check.needed_for == "compiling"
    assert check.fix is not None
    assert check.fix.endswith("-m pip install 'numpy==0.0.1'")


def test_local_version_satisfies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cpu")
    check = doctor.check_requirement('torch==2.13.0; extra == "compile"')
    assert check is not None
    assert check.fix is None


def test_missing_requirement() -> None:
    check = doctor.check_requirement("there-is-no-such-package>=2")
    assert check is not None
    assert check.found == "missing"
    assert check.fix is not None


def test_requirements_of_developers_are_not_asked_for() -> None:
    assert doctor.check_requirement('pytest>=9; extra == "dev"') is None


def test_status_is_2_where_running_lacks_something(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = [doctor.Check("numpy", "missing", "running", "pip install numpy")]
    monkeypatch.setattr(doctor, "software_checks", lambda: lacking)
    assert main.run(["doctor"]) == 2
    assert "→ pip install numpy" in capsys.readouterr().out


def test_status_is_0_where_only_compiling_lacks_something(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = [doctor.Check("torch", "missing", "compiling", "pip install torch")]
    monkeypatch.setattr(doctor, "software_checks", lambda: lacking)
    status = main.run(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert not report["ready"]["compiling"]
    assert status == (0 if report["ready"]["running"] else 2)


def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    check = next(check for check in doctor.toolchain_checks() if check.name == "cache")
    assert str(tmp_path) in check.found
    assert check.fix is not None
