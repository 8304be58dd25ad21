"""Streams, texts and files that `smc run` and `smc chat` can't use: one sentence each, and exit status 2."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from smc.cli.main import BROKEN_PIPE, run

BROKEN = os.fsdecode(b"caf\xe9")  # as Python hands over an argument that is no UTF-8

Refusal = Callable[..., str]


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """The sentence for a command line."""

    def told(*arguments: object) -> str:
        assert run([str(argument) for argument in arguments]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        assert output.err.count("\n") == 1
        return output.err

    return told


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["run", "{}", BROKEN], "the prompt"),
        (["run", "{}", "x", "--system", BROKEN], "--system"),
        (["run", "{}", "x", "--stop", "fine", "--stop", BROKEN], "--stop"),
        (["chat", "{}", "--system", BROKEN], "--system"),
    ],
)
def test_arguments_that_are_no_utf8(artifact: Path, refusal: Refusal, arguments: list[str], what: str) -> None:
    assert refusal(*(argument.format(artifact) for argument in arguments)) == f"error: {what} is not UTF-8 text\n"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("command", ["run", "chat"])
def test_standard_input_that_is_no_utf8(
    artifact: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, command: str, errors: str
) -> None:
    """In the C locale Python reads such bytes without an error."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors=errors))
    assert "standard input is not UTF-8 text" in refusal(command, artifact)


def test_standard_input_that_cannot_be_read(
    artifact: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Disk(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Disk())))
    assert "can't be read from standard input: Input/output error" in refusal("run", artifact)


def test_artifacts_that_are_no_files(refusal: Refusal, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    assert "it is not a regular file" in refusal("run", tmp_path / "pipe", "x")
    assert "it is not a regular file" in refusal("run", "/dev/zero", "x")


def test_a_system_without_any_temporary_file(
    artifact: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert "set TMPDIR" in refusal("run", artifact, "x")


@pytest.mark.parametrize("tokens", [2**31, 10**30])
def test_a_context_beyond_all_bounds(artifact: Path, refusal: Refusal, tokens: int) -> None:
    assert "context_length is" in refusal("run", artifact, "x", "--ctx", tokens)


def command(*arguments: object, script: str) -> subprocess.CompletedProcess[bytes]:
    """`smc` in a process of its own, started by a shell script."""
    return subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-m", "smc", *map(str, arguments)],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_closed_streams(artifact: Path) -> None:
    done = command("run", artifact, "x", script='"$@" >&-')
    assert (done.returncode, done.stderr) == (2, b"error: standard output is closed\n")
    done = command("run", artifact, "--raw", script='"$@" <&-')
    assert done.returncode == 2
    assert b"the prompt is empty" in done.stderr


def test_a_reader_that_has_gone(artifact: Path) -> None:
    done = command("run", artifact, "x", "-n", "50", script='"$@" | true; exit ${PIPESTATUS[0]}')
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, b"")
