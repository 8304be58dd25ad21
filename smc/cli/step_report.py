"""--report: a page about the model after every pass, for commands that run chains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smc.cli import messages
from smc.cli.output import check_replaceable
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.cli.progress import StageProgress
    from smc.ir import Module
    from smc.steps import Steps

REPORT = click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Page to write: size and quality after every pass, measured on --text.",
)


def check_report(report: Path | None, text: Path | None) -> None:
    """Raise InputError if the page can't be written, or there is no text to measure on."""
    if report is None:
        return
    if text is None:
        raise InputError("--report needs --text FILE, a text to measure quality on")
    if not text.is_file():
        raise InputError(f"there is no text file {text}")
    check_replaceable(report, "page", b"<!doctype html>")


def begin_steps(
    report: Path | None, text: Path | None, module: Module, teacher: Module | None, work: Path | None,
    progress: StageProgress,
) -> Steps | None:  # fmt: skip
    """Measures the module and later ones if a page is requested, else None."""
    if report is None or text is None:
        return None
    from smc.steps import Steps

    return Steps(module, text, work, teacher, progress.note, lambda fraction: progress.update("measure", fraction))


def write_page(report: Path | None, steps: Steps | None) -> None:
    """Write the page, and print its table."""
    if report is None or steps is None:
        return
    from smc.pages.steps import steps_page
    from smc.steps import table

    name = steps.first.facts.name
    report.write_text(steps_page(f"{name}, step by step", steps.steps, steps.text.name), encoding="utf-8")
    messages.note(table(steps.steps))
    messages.note(f"wrote {report}")


def add_artifact(steps: Steps, name: str, done: str, path: Path, size: int) -> None:
    """Measure an artifact with the engine, if it runs on this machine."""
    import torch

    import smc

    try:
        model = smc.load(path)
    except InputError:  # for another machine
        steps.artifact(name, done, size, None)
        return
    with model:
        steps.artifact(name, done, size, lambda tokens: torch.from_numpy(model.logits(tokens.tolist())))
