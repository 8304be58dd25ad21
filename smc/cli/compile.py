"""`smc compile`: from a checkpoint to an artifact."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from smc.cli import messages
from smc.cli.options import complete_target, verbosity_options
from smc.cli.pass_options import Request, pass_options, read_requests, run_requests, what_happened
from smc.cli.signals import orderly_end
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.cli.progress import StageProgress
    from smc.codegen import CompileReport
    from smc.ir import Module

PROGRAM_BYTES = 4 << 20
"""What is asked of the disk beside weights and tokenizer: the program and the files that it is linked from."""


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--target",
    default="native",
    show_default=True,
    shell_complete=complete_target,
    help="Machine to compile for: see `smc targets`.",
)
@click.option(
    "--adapter",
    "adapters",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR",
    help="LoRA adapter to merge into the model (PEFT's layout); several are merged in order.",
)
@pass_options
@click.option(
    "--activations",
    type=click.Choice(("int8", "float")),
    help="How inputs of quantized matrices are rounded; by default as the format or the recipe says.",
)
@click.option(
    "--calib", type=click.Path(path_type=Path), metavar="FILE", help="Text file for passes that take statistics."
)
@click.option(
    "--emit",
    type=(str, click.Path(path_type=Path)),
    metavar="KINDS DIR",
    help="Folder for what lies between, of the kinds plan, schedule, c, tir, asm and obj with commas between.",
)
@click.option(
    "--without", metavar="NAMES", help="Fast paths to leave out, with commas between (docs/extending.md)."
)
@click.option(
    "--standalone", is_flag=True, help="Make the artifact an executable as well, which needs nothing but the machine."
)
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Tuning records to use in place of the user's own: see `smc tune`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--force", is_flag=True, help="Replace OUT also where it is a file that is no artifact.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="OUT", help="Artifact to write; by default NAME.smc."
)
@verbosity_options
def compile(
    model: str,
    target: str,
    adapters: tuple[Path, ...],
    quant: str | None,
    passes: tuple[str, ...],
    recipe: Path | None,
    activations: Literal["int8", "float"] | None,
    calib: Path | None,
    emit: tuple[str, Path] | None,
    without: str | None,
    standalone: bool,
    records: Path | None,
    as_json: bool,
    force: bool,
    out: Path | None,
) -> None:
    """Compile MODEL to an artifact, one runnable file.

    An artifact needs neither torch nor tvm: `smc run` runs it, here or on another machine of the target's kind.
    MODEL is a folder in the Hugging Face layout, a model id of the Hugging Face hub, or a .gguf file.
    Passes run in the order given, then the recipe; of those that would quantize a matrix the first does. With neither
    --quant, --recipe nor a pass a source that is quantized already keeps its codes, and floats get the recipe int4.

    \b
    Examples:
      smc compile SmolLM2-135M-Instruct.gguf -o smollm2.smc
      smc compile ./TinyLlama --quant int8 --target x86-64
      smc compile ./TinyLlama -p quantize-rtn:bits=4,group=64 --emit c,asm listing
      smc compile ./TinyLlama -p ./log_levels.py:log-levels:group=128
      smc compile ./TinyLlama --target arm64 --standalone -o tinyllama    # there: ./tinyllama "Once upon a time"
    """
    import smc
    from smc.cli.progress import StageProgress
    from smc.codegen.output import output_folder
    from smc.targets import find_target

    machine = find_target(target)
    requests = read_requests(passes, quant, recipe)
    kinds = _emit_kinds(emit[0]) if emit else ()
    left_out = _fast_paths(without) if without else ()
    if calib is not None and not calib.is_file():
        raise InputError(f"there is no calibration text {calib}")
    named = [Path(text.partition(".py:")[0] + ".py") for text in passes if ".py:" in text]
    inputs = [Path(model), *adapters, *(path for path in (calib, recipe, records) if path is not None), *named]
    if emit is not None:
        output_folder(emit[1])
    with StageProgress() as progress, orderly_end():
        module, out, quantized = _read_model(
            model, adapters, out, inputs, force, requests, activations, calib, standalone, progress
        )
        progress.detail(f"target: {machine.name}, levels {', '.join(level.name for level in machine.levels)}")
        report = smc.compile(
            module,
            target,
            out,
            standalone=standalone,
            progress=progress.update,
            emit=emit[1] if emit else None,
            emit_kinds=kinds,
            records=records,
            without=left_out,
        )
        if report.no_chat is not None:
            progress.note(f"the executable can only continue plain text (--raw): the chat template {report.no_chat}")
    summary = {**_summary(module, out, report, progress), "quantized": quantized}
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    elif not messages.is_quiet():
        _print_summary(summary)


def _read_model(
    model: str,
    adapters: tuple[Path, ...],
    out: Path | None,
    inputs: list[Path],
    force: bool,
    requests: list[Request],
    activations: Literal["int8", "float"] | None,
    calib: Path | None,
    standalone: bool,
    progress: StageProgress,
) -> tuple[Module, Path, str]:
    """The module after its passes, where the artifact goes, and how it came to be quantized.

    What can't be written there is refused early.
    """
    import smc
    from smc.passes import ChangeActivations

    if out is not None:
        _check_output(out, inputs, force)
    progress.update("read checkpoint", 0)
    module = smc.load_checkpoint(model, adapters)
    if out is None:
        out = Path(f"{_file_name(module.facts.name)}.smc")
        _check_output(out, inputs, force)
    progress.update("run passes", 0)
    source = module
    module = run_requests(
        module,
        requests,
        calib,
        report=progress.note,
        progress=lambda fraction: progress.update("run passes", fraction),
    )
    quantized = what_happened(source, module, requests)
    if activations is not None:
        module = smc.apply(module, [ChangeActivations(activations)], report=progress.note)
    progress.update("run passes", 1)
    for line in module.facts.provenance:
        progress.detail(f"made from: {line}")
    _check_space(out, module, standalone)
    return module, out, quantized


def _emit_kinds(text: str) -> tuple[str, ...]:
    from smc.codegen.dumps import KINDS

    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"--emit takes {', '.join(KINDS)} with commas between, not {kind!r}")
    return kinds


def _fast_paths(text: str) -> tuple[str, ...]:
    from smc.codegen.schedule.fast_paths import FAST_PATHS

    names = tuple(text.split(","))
    for name in names:
        if name not in FAST_PATHS:
            raise InputError(f"--without takes {', '.join(FAST_PATHS)} with commas between, not {name!r}")
    return names


def _file_name(name: str) -> str:
    """A model's name without what a file name should not have."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".-") or "model"


def _check_output(out: Path, inputs: list[Path], force: bool) -> None:
    from smc.codegen.output import output_file

    file = output_file(out, inputs)
    if not force and file.is_file() and file.stat().st_size and not _is_ours(file):
        raise InputError(f"the output {out} exists and is no artifact: name another file, or replace it by --force")


def _is_ours(out: Path) -> bool:
    from smc.runtime.artifact import read_manifest

    try:
        read_manifest(out)
    except InputError:
        return False
    return True


def _check_space(out: Path, module: Module, standalone: bool) -> None:
    """Refuse a disk that can't take the weights, before the long work starts."""
    # An executable has tables of the tokenizer too, which are about as large.
    tokenizer = len((module.facts.tokenizer or "").encode()) * (2 if standalone else 1)
    needed = module.stored_bits() // 8 + tokenizer + PROGRAM_BYTES
    free = shutil.disk_usage(out.absolute().parent).free
    if free < needed:
        raise InputError(
            f"there is not enough disk space for {out}: it needs about {needed / 1e6:,.0f} MB, "
            f"{out.absolute().parent} has {free / 1e6:,.0f} MB"
        )


def _summary(module: Module, out: Path, report: CompileReport, progress: StageProgress) -> dict[str, Any]:
    def encoding(role: str) -> str:
        return ", ".join(sorted({str(module.parameters[name].encoding) for name in module.parameters_of(role)}))

    facts = asdict(report)
    del facts["stage_seconds"]  # `progress` has these stages too, with those before
    return {
        **facts,
        "out": str(out),
        "standalone": report.executable_bytes > 0,
        "model": module.facts.name,
        "weights": module.weight_count(),
        "embedding": encoding("embedding"),
        "head": encoding("head"),
        "seconds": {stage: round(seconds, 3) for stage, seconds in progress.seconds.items()},
    }


def _print_summary(summary: dict[str, Any]) -> None:
    seconds = summary["seconds"]
    rows = {
        "size": f"{summary['bytes'] / 1e6:,.1f} MB, {summary['bits_per_weight']:.2f} bits per weight "
        f"({summary['weights'] / 1e6:,.1f} million weights)",
        "quantized": summary["quantized"],
        "embedding": summary["embedding"],
        "head": summary["head"],
        "levels": ", ".join(summary["levels"]),
        **({"executable": f"{summary['executable_bytes'] / 1e6:.1f} MB of it"} if summary["standalone"] else {}),
        "time": f"{sum(seconds.values()):.1f} s",
    }
    click.secho(summary["out"], bold=True)
    for name, text in rows.items():
        click.echo(f"  {name.ljust(10)} {text}")
