"""`smc optimize`: runs passes and writes a checkpoint in the Hugging Face layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smc.cli.options import verbosity_options
from smc.cli.pass_options import (
    CALIB,
    Request,
    pass_options,
    read_requests,
    run_requests,
    training_options,
    work_folder,
)
from smc.cli.progress import StageProgress
from smc.cli.signals import orderly_end
from smc.cli.step_report import REPORT, begin_steps, check_report, write_page
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.ir import Module

WINDOW, WINDOWS = 512, 64
"""The window in tokens for the perplexity in the model card."""

OUT = click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder to create for the result.",
)
"""Options of commands that write a checkpoint."""


@click.command()
@click.argument("model", type=click.Path())
@pass_options
@CALIB
@training_options
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text to measure the perplexity on, before and after, for the model card.",
)
@REPORT
@OUT
@verbosity_options
def optimize(
    model: str,
    quant: str | None,
    passes: tuple[str, ...],
    recipe: Path | None,
    bits: float | None,
    calib: Path | None,
    teacher: str | None,
    work: Path | None,
    text: Path | None,
    report: Path | None,
    out: Path,
) -> None:
    """Run passes on MODEL and write a checkpoint, which transformers and smc can load.

    Integers are written as compressed-tensors, ternary matrices as BitNet stores them (with a scale per row as QLlama);
    other codes, and those of embedding and head, become floats again. Without passes a GGUF file is only converted.

    \b
    Examples:
      smc optimize ./SmolLM2-135M -p drop-layers:layers=12-15 -o pruned
      smc optimize ./SmolLM2-135M -p up-scale:remove=9 -p distill:data=text.txt,minutes=40 -o deeper
    """
    requests = read_requests(passes, quant, recipe, bits) if passes or quant or recipe or bits else []
    finish(model, requests, calib, teacher, work, text, report, out)


def finish(
    model: str,
    requests: Sequence[Request],
    calib: Path | None,
    teacher: str | None,
    work: Path | None,
    text: Path | None,
    report: Path | None,
    out: Path,
) -> None:
    """Read a model, run passes on it and write the result."""
    import smc

    check_report(report, text)
    with StageProgress() as progress, orderly_end():
        progress.update("read checkpoint", 0)
        module = smc.load_checkpoint(model)
        other = None if teacher is None else smc.load_checkpoint(teacher)
        steps = begin_steps(report, text, module, other, work_folder(work), progress)
        progress.update("run passes", 0)
        result = run_requests(
            module,
            requests,
            calib,
            report=progress.note if steps is None else steps.report,
            progress=lambda fraction: progress.update("run passes", fraction),
            teacher=other,
            work=work_folder(work),
            note=progress.note,
            after=None if steps is None else steps.after,
        )
        progress.update("run passes", 1)
        write(module, result, text, out, progress)
    write_page(report, steps)


def write(before: Module | None, module: Module, text: Path | None, out: Path, progress: StageProgress) -> None:
    """Measure and write a module. before: the model that it was made from, if there is one to compare with."""
    from smc.export import write_checkpoint

    quality: dict[str, str] = {}
    if text is not None:
        if before is not None:
            quality["perplexity before"] = f"{_perplexity(before, text, progress, 'measure before'):.2f}"
        quality["perplexity"] = f"{_perplexity(module, text, progress, 'measure'):.2f}"
        quality["measured on"] = f"{text.name}, windows of at most {WINDOW} tokens, all but the first"
    notes = write_checkpoint(
        module, out, quality=quality, progress=lambda fraction: progress.update("write checkpoint", fraction)
    )
    for note in notes:
        progress.note(note)
    for name, value in quality.items():
        progress.note(f"{name}: {value}")
    click.echo(f"{out}: {module.weight_count():,} weights, {module.bits_per_weight():.2f} bits per weight")


def _perplexity(module: Module, text: Path, progress: StageProgress, stage: str) -> float:
    from smc.reference import Reference
    from smc.reference.evaluation import score, text_windows
    from smc.reference.text import read_tokens

    facts = module.facts
    length = min(WINDOW, facts.context_length)
    windows = text_windows(read_tokens(text, facts.tokenizer, facts.vocab_size), length, WINDOWS)
    if not windows:
        raise InputError(f"the text {text} is too short for a window of {length} tokens: give a longer one")
    scores = score(Reference(module).logits, windows, progress=lambda fraction: progress.update(stage, fraction))
    perplexity = scores.summary().perplexity
    return perplexity if math.isfinite(perplexity) else math.inf
