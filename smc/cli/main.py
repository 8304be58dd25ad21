"""The `smc` command: its subcommands, loaded when named, and the one place where errors become exit statuses.

0: success. 1: a bug in smc. 2: wrong input, or the system refused something. 128 + N: ended by signal N, 130 by Ctrl-C;
141: the reader of the output has gone.
"""

from __future__ import annotations

import errno
import importlib
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

import click

import smc
from smc.cli import messages
from smc.cli.faults import explain
from smc.cli.signals import Terminated
from smc.cli.streams import OUTPUT, drop_output, repair_streams
from smc.distribution import packages_named
from smc.errors import InputError

COMMANDS = {
    "compile": "smc.cli.compile:compile",
    "run": "smc.cli.run:run",
    "chat": "smc.cli.chat:chat",
    "serve": "smc.cli.serve:serve",
    "list": "smc.cli.cached:list_models",
    "rm": "smc.cli.cached:remove_models",
    "ngram": "smc.cli.ngram:ngram",
    "bench": "smc.cli.bench:bench",
    "eval": "smc.cli.evaluate:evaluate",
    "sweep": "smc.cli.sweep:sweep",
    "optimize": "smc.cli.optimize:optimize",
    "distill": "smc.cli.train:distill",
    "train": "smc.cli.train:train",
    "tune": "smc.cli.tune:tune",
    "inspect": "smc.cli.inspect:inspect",
    "passes": "smc.cli.passes:passes",
    "encodings": "smc.cli.passes:encodings",
    "targets": "smc.cli.targets:targets",
    "doctor": "smc.cli.doctor:doctor",
}
"""The subcommands in the order of the help, each with the place of its `click.Command`."""

LEAST_ADDRESS_SPACE = 256 << 20
"""Bytes. With less, the libraries below numpy end the process as they are loaded, and no sentence can be said."""

BROKEN_PIPE = 128 + 13
"""The status that the shell reports for programs that SIGPIPE ends."""


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when the subcommand is used or its help is shown."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand of this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand; an unknown one is refused with the nearest name."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            close = get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {name!r}: {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(smc.__version__, "-V", "--version", prog_name="smc", help="Show the version of smc and exit.")
def cli() -> None:
    """smc compiles small language models: a checkpoint goes in, one runnable file comes out.

    \b
    smc compile SmolLM2-135M-Instruct.gguf -o smollm2.smc
    smc run smollm2.smc "What is the capital of France?"

    `smc COMMAND --help` explains a command with an example; `smc doctor` checks whether this machine has what smc
    needs. Every command takes -q (print only errors and results) and -v (print more).

    \b
    To complete commands, options and names in the shell, run
      eval "$(_SMC_COMPLETE=bash_source smc)"     # in ~/.bashrc; zsh_source in ~/.zshrc
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    repair_streams()
    if sys.stdout is None:
        sys.exit(_complain("standard output is closed"))
    messages.prepare_output()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (by default the process's own) and return the exit status."""
    messages.set_level(messages.NORMAL)
    try:
        _check_address_space()
        with packages_named(), messages.notices():
            status = cli.main(args=arguments, prog_name="smc", standalone_mode=False, color=messages.color())
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BaseException as error:
        return _told(error)


def _check_address_space() -> None:
    """Refuse to start where no command could load its libraries."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise InputError(
            f"there is not enough memory for this: the process may use {limit >> 20} MiB of addresses, and smc needs "
            f"at least {LEAST_ADDRESS_SPACE >> 20}: raise `ulimit -v`"
        )


def _told(error: BaseException) -> int:
    """Print what went wrong; returns the exit status."""
    if isinstance(error, click.ClickException):
        error.show()
        return 2
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        click.echo("interrupted", err=True)
        return 130
    if isinstance(error, Terminated):
        click.echo("terminated", err=True)
        return 128 + error.number
    if isinstance(error, OSError) and error.filename == OUTPUT:
        drop_output()
        if error.errno == errno.EPIPE:
            return BROKEN_PIPE
    sentence = explain(error)
    if sentence is not None:
        if messages.is_verbose():
            traceback.print_exception(error)
        return _complain(sentence)
    if isinstance(error, SystemExit):  # click, for completion and a broken pipe
        return int(error.code or 0) if "_SMC_COMPLETE" in os.environ else BROKEN_PIPE
    return _report_bug(error)


def _complain(sentence: str) -> int:
    messages.complain(sentence)
    return 2


def _report_bug(error: BaseException) -> int:
    traceback.print_exception(error)
    versions = f"smc {smc.__version__}, Python {sys.version.split()[0]}"
    click.echo(f"\nThis is a bug in smc ({versions}): please report it with the lines above.", err=True)
    return 1
