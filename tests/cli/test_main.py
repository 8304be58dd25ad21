"""What all subcommands share: help, suggestions, exit statuses."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

import smc
from smc.cli import main, messages
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


def test_version_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["-V"]) == 0
    assert capsys.readouterr().out == f"smc, version {smc.__version__}\n"


def leaves() -> dict[str, click.Command]:
    """Every command that does something, by its name on the command line."""
    found: dict[str, click.Command] = {}
    for name in main.COMMANDS:
        command = main.LazyGroup().get_command(click.Context(main.cli), name)
        assert command is not None
        below = command.commands if isinstance(command, click.Group) else {"": command}
        found |= {f"{name} {inner}".strip(): leaf for inner, leaf in below.items()}
    return found


@pytest.mark.parametrize(("name", "command"), leaves().items(), ids=leaves())
def test_every_option_is_explained(name: str, command: click.Command) -> None:
    """By a sentence about something, which can be read without its neighbours."""
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert {"quiet", "verbose"} <= {option.name for option in options}
    for option in options:
        assert option.help and option.help[0].isupper() and option.help.endswith("."), option.opts
        assert len(option.help.split()) >= 3, option.opts
        assert option.help.split()[0] not in ("Above", "After", "As", "Before", "Instead", "Of", "Only"), option.opts


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


def test_verbose_says_where_an_error_came_from(
    run_failing: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "set_level", lambda level: None)
    monkeypatch.setattr(messages, "_level", messages.VERBOSE)
    assert run_failing(InputError("no such folder: x")) == 2
    message = capsys.readouterr().err
    assert "Traceback" in message and message.endswith("error: no such folder: x\n")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"_SMC_COMPLETE": "bash_source"}, "complete -o nosort -F _smc_completion smc"),
        ({"COMP_WORDS": "smc comp", "COMP_CWORD": "1"}, "plain,compile"),
        ({"COMP_WORDS": "smc compile --quant int8", "COMP_CWORD": "3"}, "plain,int8"),
        ({"COMP_WORDS": "smc tune --target rasp", "COMP_CWORD": "3"}, "plain,raspberry"),
        ({"COMP_WORDS": "smc run smol", "COMP_CWORD": "2"}, "file,smol"),
    ],
)
def test_completion(variables: dict[str, str], expected: str) -> None:
    """What README puts into ~/.bashrc; the shell wants exit status 0."""
    command = [sys.executable, "-m", "smc"]
    environment = {**os.environ, "_SMC_COMPLETE": "bash_complete", **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout


def test_as_a_process() -> None:
    run = subprocess.run([sys.executable, "-m", "smc", "compil"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "\x1b" not in run.stderr, "no colours where there is no terminal"
