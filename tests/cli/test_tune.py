"""`smc tune`: from a model to records, by this machine or by a kit, and what compiling makes of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smc
from smc.cli import main
from smc.codegen.cpu.tuning import parse_record, read_records
from smc.codegen.cpu.tuning_kit import artifact_matrices
from tests.emulation import emulated
from tests.levels import usable_levels

MakeCheckpoint = Callable[..., tuple[Path, Any]]
FLOOR = usable_levels()[-1]
LINE = (
    '{"version": 1, "cpu": "arm-0x41-0xd0b", "level": "dotprod", "kernel": "linear_int4_g32", '
    '"workload": {"rows": 1536, "columns": 576, "tokens": 21}, "nanoseconds": {"4x8": 1200, "8x8": 900}}'
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, in which the user's records are, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMC_RECORDS", str(tmp_path / "users.jsonl"))
    return tmp_path


@pytest.mark.slow
def test_measuring_a_model(make_checkpoint: MakeCheckpoint, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every candidate gives the same bits, or the tuner would fail; what is measured is not measured again."""
    model, _ = make_checkpoint()
    command = ["tune", str(model), "--quant", "f32", "--level", FLOOR, "--seconds", "1", "--json"]
    assert main.run(command) == 0
    summary = json.loads(capsys.readouterr().out)
    records = read_records(folder / "users.jsonl")
    assert len(records) == summary["measured"] == 4  # 48 and 80 columns, short and long prompts
    assert {(r.level, r.kernel, r.cpu) for r in records} == {(FLOOR, "linear_f32", summary["cpu"])}
    assert {dict(r.workload)["columns"] for r in records} == {48, 80}
    (row,) = summary["kernels"]
    assert row["chosen"] in dict(records[0].nanoseconds) and row["speedup"] >= 1
    lines = (folder / "users.jsonl").read_text().splitlines(keepends=True)
    (folder / "users.jsonl").write_text("".join(lines[1:]).rstrip("\n"))  # an editor took the last end of line
    assert main.run(command) == 0
    assert json.loads(capsys.readouterr().out)["measured"] == 1
    assert len(read_records(folder / "users.jsonl")) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", ["bits=5,group=64,symmetric=false", "bits=8,group=16,symmetric=false", "bits=4,super_group=4", "bits=8"]
)
def test_candidates_agree_on_what_they_are_given(make_checkpoint: MakeCheckpoint, folder: Path, options: str) -> None:
    """Sums of inputs, and zeros that panels subtract beforehand: the tuner's must be such as models have."""
    model, _ = make_checkpoint()
    passes = ["--pass", f"quantize-rtn:{options}"]
    assert main.run(["tune", str(model), *passes, "--seconds", "1", "-o", str(folder / "records.jsonl")]) == 0


def test_records_change_the_program_and_no_bit_of_the_logits(make_checkpoint: MakeCheckpoint, folder: Path) -> None:
    model, _ = make_checkpoint()
    module = smc.apply(smc.load_checkpoint(str(model)), ["convert:dtype=f32"])
    shape = '"workload": {"rows": 96, "columns": 48, "tokens": 21}'
    times = '"nanoseconds": {"6x16": 90, "8x32": 90, "3x32": 30}'
    mine = [
        f'{{"version": 1, "cpu": "c", "level": "{level}", "kernel": "linear_f32", {shape}, {times}}}'
        for level in usable_levels()
    ]
    (folder / "mine.jsonl").write_text("\n".join(mine))
    files = {name: folder / f"{name}.smc" for name in ("plain", "tuned", "again")}
    smc.compile(module, "native", files["plain"])
    smc.compile(module, "native", files["tuned"], records=folder / "mine.jsonl")
    shutil.copy("mine.jsonl", "users.jsonl")
    smc.compile(module, "native", files["again"])
    facts = {}
    for name, path in files.items():
        with zipfile.ZipFile(path) as archive:
            facts[name] = json.loads(archive.read("manifest.json"))
    assert {columns for _, _, columns in artifact_matrices(files["plain"])} == {48, 80}
    chosen = facts["tuned"]["tuning"]["candidates"]
    assert f"linear_f32_3x32__{FLOOR}" in chosen and set(chosen.values()) == {"3x32"}
    used = [line for line in mine if parse_record(line).level in {level.split("__")[1] for level in chosen}]
    assert facts["tuned"]["tuning"]["records"] == hashlib.sha256("\n".join(sorted(used)).encode()).hexdigest()
    assert facts["plain"]["tuning"] == {"candidates": {}, "records": None}
    assert facts["plain"]["program"] != facts["tuned"]["program"]
    assert files["tuned"].read_bytes() == files["again"].read_bytes()
    logits = []
    for path in files.values():
        with smc.load(path, level=FLOOR) as loaded:
            logits.append(loaded.logits(np.arange(11) % loaded.vocab_size))
    np.testing.assert_array_equal(logits[0], logits[1])


# ---------------------------------------------------------------- kits


@pytest.mark.arm64
@pytest.mark.parametrize(("cpu", "levels"), [("cortex-a53", ["neon"]), ("cortex-a76", ["dotprod", "neon"])])
def test_a_kit_for_arm64(make_checkpoint: MakeCheckpoint, folder: Path, cpu: str, levels: list[str]) -> None:
    """It measures what the CPU has, and what it prints can be imported."""
    model, _ = make_checkpoint()
    assert main.run(["tune", str(model), "--quant", "f32", "--target", "arm64", "--emit-kit", "kit"]) == 0
    command = emulated("aarch64", cpu, "./kit", "--seconds", "1")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "device.jsonl").write_text(done.stdout)
    assert main.run(["tune", "--import", "device.jsonl"]) == 0
    records = read_records(folder / "users.jsonl")
    assert list(dict.fromkeys(r.level for r in records)) == levels
    part = {"cortex-a53": "0xd03", "cortex-a76": "0xd0b"}[cpu]
    assert {r.cpu for r in records} == {f"arm-0x41-{part}"}


def test_import_merges(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "one.jsonl").write_text(LINE + "\n" + LINE.replace("576", "2048") + "\n")
    (folder / "two.jsonl").write_text(LINE.replace("900", "800") + "\n")
    assert main.run(["tune", "--import", "one.jsonl", "--import", "two.jsonl", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == {"records": str(folder / "users.jsonl"), "added": 2, "cpus": ["arm-0x41-0xd0b"]}
    assert main.run(["tune", "--import", "one.jsonl"]) == 0
    assert [dict(r.nanoseconds)["8x8"] for r in read_records(folder / "users.jsonl")] == [900, 900]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--import", "nothing.jsonl"], "there is no file of tuning records nothing.jsonl"),
        (["--import", "bad.jsonl"], "bad.jsonl line 1 is not a tuning record"),
        (["--import", "empty.jsonl"], "there are no tuning records in empty.jsonl"),
        (["--import", "empty.jsonl", "model"], "--import only reads records"),
        (["--target", "raspberry-pi-4"], "write a program for it with --emit-kit"),
        (["--target", "arm64-macos", "--emit-kit", "kit"], "there is no tuner for arm64-macos"),
        (["--target", "arm64", "--level", "avx2", "--emit-kit", "kit"], "arm64 has no level 'avx2'"),
        (["--emit-kit", "nowhere/kit"], "there is no folder nowhere to write kit into"),
        (["--quant", "int4"], "name one"),
        (["nowhere"], "nowhere"),
        (["-o", "."], "is a folder"),
        (["bad.smc"], "bad.smc"),
    ],
)
def test_refused(folder: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.jsonl").write_text("{}")
    (folder / "empty.jsonl").write_text("\n")
    (folder / "bad.smc").write_text("no artifact")
    assert main.run(["tune", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in said
    assert not (folder / "users.jsonl").exists() and not (folder / "kit").exists()


def test_records_that_are_broken_are_not_added_to(
    make_checkpoint: MakeCheckpoint, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "users.jsonl").write_text("{}")
    model, _ = make_checkpoint()
    assert main.run(["tune", str(model)]) == 2
    assert "users.jsonl line 1" in capsys.readouterr().err
    assert main.run(["compile", str(model), "-o", "out.smc"]) == 2
    assert not (folder / "out.smc").exists()
