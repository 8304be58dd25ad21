"""A manifest's entries changed in every way that JSON allows: an artifact runs or is refused in one sentence."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from smc.cli.main import run
from smc.errors import InputError
from smc.generation import SAMPLING
from smc.runtime.artifact import read_artifact
from tests.hostile import NESTED, VALUES
from tests.runtime.conftest import byte_tokenizer, manifest_for, write_artifact

GENERATION = ("eos_token_id", "bos_token_id", "pad_token_id", "do_sample", *SAMPLING)
ENTRIES = (
    *("format", "format_version", "layout_version", "name", "architecture", "target", "machine", "system", "levels"),
    *("provenance", "tuning", "versions", "parameters", "bits_per_weight", "encodings", "shapes", "context_length"),
    *("vocab_size", "weights", "program", "executable", "special_tokens", "generation", "proof"),
)


def status_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> int:
    """The exit status; a refusal is one sentence and nothing else, and no result is a NaN."""
    status = run([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert status in (0, 2), (arguments, output.err[-500:])
    if status == 2:
        assert (output.out, output.err.count("\n")) == ("", 1) and output.err.startswith("error: ")
    assert "NaN" not in output.out and "Traceback" not in output.err
    return status


def artifact_with(folder: Path, program: bytes, manifest: dict[str, Any]) -> Path:
    members = {"weights": bytes(64), "manifest.json": json.dumps(manifest), "program.so": program}
    return write_artifact(folder / "model.smc", {**members, "tokenizer.json": byte_tokenizer().to_str()})


@pytest.mark.parametrize("key", GENERATION)
def test_the_generation_entry(program: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    """38 values for each of 9 keys, 342 in all; what is refused is refused by all commands."""
    statuses = set()
    for value in VALUES:
        path = artifact_with(tmp_path, program, manifest_for(program, generation={"do_sample": True, key: value}))
        shown = status_of(capsys, "inspect", path, "--json")
        statuses.add(shown)
        if shown == 0:
            assert status_of(capsys, "run", path, "hi", "-n", 2, "-t", 1, "--seed", 1, "--json") == 0
    assert statuses == {0, 2}


@pytest.mark.parametrize("value", [None, [], [{"eos_token_id": 1}], 7, "temperature", *NESTED[1:]], ids=repr)
def test_the_whole_generation_entry(
    program: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: object
) -> None:
    path = artifact_with(tmp_path, program, manifest_for(program, generation=value))
    assert status_of(capsys, "run", path, "hi", "-n", 1, "-t", 1) == (2 if value not in (None, NESTED[1]) else 0)


@pytest.mark.parametrize("key", ENTRIES)
def test_any_entry(program: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    """Reading and inspecting, which need no engine."""
    for value in VALUES:
        path = artifact_with(tmp_path, program, manifest_for(program, **{key: value}))
        with contextlib.suppress(InputError):
            read_artifact(path)
        shown = status_of(capsys, "inspect", path)
        assert shown == status_of(capsys, "inspect", path, "--json")
