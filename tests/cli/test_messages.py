"""Colours, notices, and output that is not UTF-8."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from smc.cli import main, messages
from smc.errors import Notice

ROOT = Path(__file__).parents[2]


def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "smc", *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        check=False,
    )


@pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)])
@pytest.mark.parametrize("arguments", [["run", "nothing.smc", "x"], ["targets"], ["doctor"], ["inspect", "ARTIFACT"]])
def test_no_color(arguments: list[str], no_color: str, colored: bool, artifact: Path) -> None:
    """On a terminal: errors, headings and marks."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": no_color, "TERM": "xterm"}
    command = [sys.executable, "-m", "smc", *(str(artifact) if word == "ARTIFACT" else word for word in arguments)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # Linux: the other side is closed
            pass
    os.close(ours)
    assert len(shown) > 20
    assert (b"\x1b[" in shown) == colored


def test_notices_are_sentences(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> None:
        for _ in range(2):
            warnings.warn("the model is old", Notice, stacklevel=1)

    with messages.notices():
        warn()
    assert capsys.readouterr().err == "note: the model is old\n" * 2
    monkeypatch.setattr(messages, "_level", messages.QUIET)
    with messages.notices():
        warn()
    assert capsys.readouterr().err == ""


def test_commands_print_notices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: object, **__: object) -> int:
        warnings.warn("the model is old", Notice, stacklevel=1)
        return 0

    monkeypatch.setattr(main.cli, "main", warn)
    assert main.run([]) == 0
    assert capsys.readouterr().err == "note: the model is old\n"


def test_output_that_is_not_utf8(artifact: Path) -> None:
    """What the encoding lacks is a question mark, said once; nothing is lost, and JSON stays what it was."""
    arguments = ["run", str(artifact), "hello", "--raw", "-n", "60"]
    text = call(*arguments).stdout.decode()
    assert any(ord(character) > 255 for character in text)
    done = call(*arguments, PYTHONIOENCODING="iso-8859-1")
    assert done.returncode == 0
    assert done.stdout.decode("iso-8859-1") == "".join(c if ord(c) < 256 else "?" for c in text)
    assert done.stderr.decode() == "note: the output is iso8859-1, which lacks some characters; they are shown as ?\n"
    data = json.loads(call(*arguments, "--json", PYTHONIOENCODING="iso-8859-1").stdout)
    assert data["text"] + "\n" == text
    quiet = call(*arguments, "-q", PYTHONIOENCODING="iso-8859-1")
    assert (quiet.stdout, quiet.stderr) == (done.stdout, b"")


def test_names_of_files_are_shown_as_they_are(artifact: Path, tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode(b"caf\xe9.smc")
    name.write_bytes(artifact.read_bytes())
    options = ["--prompt-tokens", "4", "--decode-tokens", "0", "--repeat", "1"]
    done = call("bench", str(name), *options)
    assert done.returncode == 0
    assert b"caf\xe9.smc: " in done.stdout
