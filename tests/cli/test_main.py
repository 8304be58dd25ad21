"""What all subcommands share: help, suggestions, exit statuses."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

import smc
from smc.cli import main
from smc.errors import InputError


def failing(error: BaseException) -> click.Command:
    """A subcommand that raises `error`."""

    @click.command()
    def fail() -> None:
        raise error

    return fail


@pytest.fixture
def run_failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Runs a subcommand that raises the given error and returns the exit status."""

    def run(error: BaseException) -> int:
        monkeypatch.setitem(main.COMMANDS, "fail", f"{__name__}:unused")
        monkeypatch.setattr(main.LazyGroup, "get_command", lambda self, ctx, name: failing(error))
        return main.run(["fail"])

    return run


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert smc.__version__ in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"\n  {name} " in output for name in main.COMMANDS)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_explains_itself_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0
    assert re.search(rf"^ +smc {name} ", capsys.readouterr().out, re.MULTILINE)


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 2
    assert "Commands:" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["compil", "model"], "compile"),
        (["doctor", "--jso"], "--json"),
        (["compile", "model", "--quants", "int4"], "--quant"),
    ],
)
def test_nearest_match(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    output, message = capsys.readouterr()
    assert hint in message.splitlines()[-1]
    assert not output


def test_unknown_command_without_a_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["xyzzy"]) == 2
    assert "there are compile" in capsys.readouterr().err


def test_input_error_is_one_sentence(
    run_failing: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(InputError("no such folder: x")) == 2
    assert capsys.readouterr().err == "error: no such folder: x\n"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left", "/data/x"), "error: there is not enough disk space: /data/x\n"),
        (
            OSError(errno.EFBIG, "File too large", "x.smc"),
            "error: the file is too large for this file system or for this user's limit: x.smc\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "error: permission denied: /root/x\n"),
        (MemoryError(), "error: there is not enough memory for this\n"),
    ],
)
def test_what_the_system_refuses_is_a_sentence(
    error: BaseException, sentence: str, run_failing: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(error) == 2
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize("error", [ValueError("boom"), OSError(errno.EBADF, "Bad file descriptor")])
def test_bug_has_a_traceback(
    error: BaseException, run_failing: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(error) == 1
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert "bug in smc" in message


def test_interrupt(run_failing: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_failing(KeyboardInterrupt()) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_command_may_choose_its_status(run_failing: Callable[[BaseException], int]) -> None:
    assert run_failing(click.exceptions.Exit(2)) == 2


def test_as_a_process() -> None:
    run = subprocess.run([sys.executable, "-m", "smc", "compil"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "\x1b" not in run.stderr, "no colours where there is no terminal"
