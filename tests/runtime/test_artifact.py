"""Artifacts that are sound, for another machine, damaged, or none at all."""

from __future__ import annotations

import contextlib
import json
import platform
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smc.errors import InputError
from smc.generation import GenerationDefaults
from smc.runtime.artifact import read_artifact, read_manifest
from smc.targets import TARGETS
from tests.runtime.conftest import manifest_for, write_artifact

PROGRAM = b"\x7fELF program"


def members(**changes: Any) -> dict[str, bytes | str]:
    return {
        "weights": bytes(64),
        "manifest.json": json.dumps(manifest_for(PROGRAM, **changes)),
        "program.so": PROGRAM,
        "tokenizer.json": "{}",
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "model.smc", members())


def test_sound(path: Path):
    artifact = read_artifact(path)
    assert (artifact.manifest.name, artifact.program, artifact.tokenizer) == ("counting", PROGRAM, "{}")
    assert artifact.chat_template is None
    assert artifact.manifest.special_tokens == {"eos_token": "<end>"}
    assert artifact.manifest.generation == GenerationDefaults(eos_token_ids=(257,))
    assert read_manifest(str(path)) == artifact.manifest


def test_behind_an_executable(path: Path, tmp_path: Path):
    """A standalone artifact has a program in front, and offsets that count from the file's beginning."""
    standalone = tmp_path / "model"
    standalone.write_bytes(b"\x7fELF" + bytes(4092))
    with zipfile.ZipFile(standalone, "a") as archive:
        for name, data in members().items():
            archive.writestr(name, data)
    assert read_artifact(standalone).program == PROGRAM


def complaint(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_artifact(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_no_file(tmp_path: Path):
    assert "does not exist" in complaint(tmp_path / "none.smc")


def test_checkpoint_instead(tmp_path: Path):
    assert "compile it first: smc compile" in complaint(tmp_path)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" + bytes(100))
    assert "compile it first" in complaint(gguf)


def test_something_else(tmp_path: Path):
    for content in (b"", b"hello", b"#!/bin/sh\n" * 100):
        other = tmp_path / "other"
        other.write_bytes(content)
        assert "is not an smc artifact" in complaint(other)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "hello")
    assert "is a ZIP but not an smc artifact" in complaint(tmp_path / "other.zip")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_cut_short(path: Path, keep: float):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    assert "is incomplete" in complaint(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "zip"}, "does not say"),
        ({"format_version": 1}, "has artifact format 1, this smc reads format 2"),
        ({"format_version": None}, "has artifact format None"),
        ({"name": 3}, "is damaged: manifest.json: name must be a string, not 3"),
        ({"weights": []}, "weights must be an object, not []"),
        ({"vocab_size": True}, "vocab_size must be a positive integer"),
        ({"special_tokens": {"bos_token": 1}}, "special_tokens must be an object whose values are strings"),
        ({"program": {"sha256": "0" * 64, "bytes": 3}}, "not the program that its manifest names"),
        ({"program": {}}, "program has no sha256"),
        ({"machine": None}, "manifest.json has no machine"),
        ({"machine": "vax"}, "is compiled for here (Linux, vax), this machine is Linux, "),
        ({"system": "Plan 9"}, "is compiled for here (Plan 9, "),
    ],
    ids=str,
)
def test_manifest_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], sentence: str):
    assert sentence in complaint(write_artifact(tmp_path / "model.smc", members(**changes)))


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100000])
def test_manifest_that_is_none(tmp_path: Path, text: bytes):
    sentence = complaint(write_artifact(tmp_path / "model.smc", members() | {"manifest.json": text}))
    assert "is damaged" in sentence or "is not an smc artifact" in sentence


def test_manifest_of_another_machine_can_be_read(tmp_path: Path):
    path = write_artifact(tmp_path / "model.smc", members(target="riscv64", machine="riscv64"))
    assert read_manifest(path).target == "riscv64"
    assert "compiled for riscv64 (Linux, riscv64)" in complaint(path)


@pytest.mark.parametrize(
    ("here", "android", "fits"),
    [
        (("Linux", "aarch64"), False, "arm64"),
        (("Linux", "aarch64"), True, "arm64-android"),
        (("Android", "aarch64"), True, "arm64-android"),
        (("Darwin", "arm64"), False, "arm64-macos"),
        (("Linux", "x86_64"), False, "x86-64"),
    ],
    ids=str,
)
def test_targets_fit_one_kind_of_machine(
    tmp_path: Path, here: tuple[str, str], android: bool, fits: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(platform, "system", lambda: here[0])
    monkeypatch.setattr(platform, "machine", lambda: here[1])
    if android:
        monkeypatch.setattr(sys, "getandroidapilevel", lambda: 24, raising=False)
    for name in ("x86-64", "arm64", "arm64-android", "arm64-macos"):
        target = TARGETS[name]
        changes = {"target": name, "machine": target.machine, "system": target.system}
        path = write_artifact(tmp_path / name, members(**changes))
        if name == fits:
            assert read_artifact(path).manifest.name == "counting"
        else:
            assert f"is compiled for {name} (" in complaint(path)


def test_repacked(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "model.smc", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members().items():
            archive.writestr(name, data)
    assert "was repacked" in complaint(tmp_path / "model.smc")


def test_member_twice(path: Path):
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("program.so", b"another")
    assert "occurs twice" in complaint(path)


def test_flipped_bits(path: Path):
    data = path.read_bytes()
    at = data.index(PROGRAM)
    path.write_bytes(data[:at] + b"?" + data[at + 1 :])
    assert "program.so can't be read" in complaint(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_a_sentence_or_harmless(path: Path, tmp_path: Path, data: st.DataObject):
    """Bytes changed or cut out of headers, directory, manifest: InputError or a sound answer, nothing else."""
    sound = path.read_bytes()
    tail = sound[65536:]
    damaged = bytearray(tail)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[at] = data.draw(st.integers(0, 255))
        else:
            del damaged[at : at + data.draw(st.integers(1, 40))]
    changed = tmp_path / "changed.smc"
    changed.write_bytes(sound[:65536] + bytes(damaged))
    with contextlib.suppress(InputError):
        assert read_artifact(changed).program == PROGRAM
