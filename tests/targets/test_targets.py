"""Targets as data: unique, of one family, with levels that LLVM knows, found by name and by machine."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from smc.errors import InputError
from smc.targets import TARGETS, Target, find_target


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_levels_are_of_one_family_and_the_last_is_the_floor(target: Target) -> None:
    assert {level.family for level in target.levels} == {target.family}
    assert len({level.name for level in target.levels}) == len(target.levels)
    assert all(set(target.levels[-1].features) < set(level.features) for level in target.cpu_levels[:-1])
    assert {*target.cpu_levels, *target.gpu_levels} == {*target.levels}
    # The driver compiles PTX where no machine code fits; of machine code the newest comes first.
    assert [level.ptx for level in target.gpu_levels] == sorted(level.ptx for level in target.gpu_levels)
    codes = [level.architecture for level in target.gpu_levels if not level.ptx]
    assert codes == sorted(codes, reverse=True)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_llvm_knows_the_features_and_the_cpu(target: Target) -> None:
    """An unknown feature would only be warned about, and the kernels be slow."""
    from tvm.target import Target as TvmTarget
    from tvm.target import codegen

    for level in target.cpu_levels:
        features = [f"+{feature}" for feature in level.features]
        described = TvmTarget({"kind": "llvm", "mtriple": target.llvm_triple, "mattr": features})
        assert codegen.llvm_cpu_has_features(list(level.features), described)
    if target.cpu is not None:
        assert codegen.llvm_is_valid_cpu(target.cpu, target.llvm_triple)
        cpu = TvmTarget({"kind": "llvm", "mtriple": target.llvm_triple, "mcpu": target.cpu})
        assert codegen.llvm_cpu_has_features(list(target.levels[0].features), cpu)


@pytest.mark.parametrize(
    ("machine", "system", "name"),
    [("x86_64", "Linux", "x86-64"), ("aarch64", "Linux", "arm64"), ("arm64", "Darwin", "arm64-macos")],
)
def test_native(monkeypatch: pytest.MonkeyPatch, machine: str, system: str, name: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "system", lambda: system)
    assert find_target("native").name == name


def test_native_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    with pytest.raises(InputError, match=r"no target for this machine \(Windows AMD64\)"):
        find_target("native")


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="did you mean 'raspberry-pi-4'"):
        find_target("rasberry-pi-4")
    with pytest.raises(InputError, match="unknown target 'vax'"):
        find_target("vax")


def test_every_target_is_documented_with_its_levels() -> None:
    text = (Path(__file__).parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
    lines = text.partition("\n## Targets\n")[2].splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("| `")]
    levels = {name: set(re.findall("`(.+?)`", cells[2])) for cells in rows for name in re.findall("`(.+?)`", cells[0])}
    assert {*TARGETS, "native"} == levels.keys()
    for target in TARGETS.values():
        assert {level.name for level in target.levels} <= levels[target.name]
