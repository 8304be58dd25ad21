"""`smc compile`: from a checkpoint to an artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from smc.cli import messages
from smc.cli.options import complete_target, verbosity_options
from smc.cli.pass_options import (
    CALIB,
    Request,
    pass_options,
    read_requests,
    run_requests,
    training_options,
    what_happened,
    work_folder,
)
from smc.cli.signals import orderly_end
from smc.cli.step_report import REPORT, add_artifact, begin_steps, check_report, write_page
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.cli.progress import StageProgress
    from smc.codegen import CompileReport
    from smc.ir import Module
    from smc.runtime.manifest import QualityFacts
    from smc.steps import Steps

PROGRAM_BYTES = 4 << 20
"""Disk space needed beside weights and tokenizer: the program and the files that it is linked from."""


@dataclass(frozen=True)
class _Source:
    """What to compile: a checkpoint and the passes for it, as the command line names them."""

    model: str
    adapters: tuple[Path, ...]
    quant: str | None
    passes: tuple[str, ...]
    recipe: Path | None
    bits: float | None
    activations: Literal["int8", "float"] | None
    calib: Path | None
    teacher: str | None
    work: Path | None
    text: Path | None
    report: Path | None

    def requests(self) -> list[Request]:
        """The passes. InputError if a named file does not exist."""
        requests = read_requests(self.passes, self.quant, self.recipe, self.bits)
        if self.calib is not None and not self.calib.is_file():
            raise InputError(f"there is no calibration text {self.calib}")
        check_report(self.report, self.text)
        if self.text is not None and self.report is None:
            raise InputError("--text is what --report FILE measures on: give both")
        return requests

    def files(self) -> list[Path]:
        """All input files, which the output must not replace."""
        named = [Path(text.partition(".py:")[0] + ".py") for text in self.passes if ".py:" in text]
        others = (self.calib, self.recipe, self.text)
        return [Path(self.model), *self.adapters, *(path for path in others if path), *named]

    def read(self, progress: StageProgress) -> Module:
        """The checkpoint, with its adapters merged."""
        import smc

        progress.update("read checkpoint", 0)
        return smc.load_checkpoint(self.model, self.adapters)

    def change(
        self, module: Module, requests: list[Request], progress: StageProgress
    ) -> tuple[Module, str, Steps | None]:
        """The module after the passes, a phrase that says how it was quantized, and measurements for a report."""
        import smc
        from smc.passes import ChangeActivations

        teacher = None if self.teacher is None else smc.load_checkpoint(self.teacher)
        work = work_folder(self.work)
        steps = begin_steps(self.report, self.text, module, teacher, work, progress)
        report, after = (progress.note, None) if steps is None else (steps.report, steps.after)
        progress.update("run passes", 0)
        changed = run_requests(
            module,
            requests,
            self.calib,
            report=report,
            progress=lambda fraction: progress.update("run passes", fraction),
            teacher=teacher,
            work=work,
            note=progress.note,
            after=after,
        )
        quantized = what_happened(module, changed, requests)
        if self.activations is not None:
            changed = smc.apply(changed, [ChangeActivations(self.activations)], report=report, after=after)
        progress.update("run passes", 1)
        for line in changed.facts.provenance:
            progress.detail(f"made from: {line}")
        return changed, quantized, steps


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
    help="How to round inputs of quantized matrices; the default is that of the format or recipe.",
)
@CALIB
@training_options
@click.option(
    "--text", type=click.Path(path_type=Path), metavar="FILE", help="Text that --report measures quality on."
)
@REPORT
@click.option(
    "--emit",
    type=(str, click.Path(path_type=Path)),
    metavar="KINDS DIR",
    help=(
        "Write intermediate results to DIR. KINDS: plan, schedule, c, tir, asm, obj (GPUs: cu, ptx, sass), with commas."
    ),
)
@click.option("--without", metavar="NAMES", help="Fast paths to leave out, separated by commas (docs/extending.md).")
@click.option("--standalone", is_flag=True, help="Make the artifact an executable, too, which needs nothing installed.")
@click.option(
    "--functions",
    "functions_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --standalone: it answers by calls of these functions, a .py file (never run) or tools in a .json file.",
)
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Tuning records to use instead of your own: see `smc tune`.",
)
@click.option("--no-verify", is_flag=True, help="Skip the comparison of a few tokens' logits with the reference.")
@click.option(
    "--measure",
    "measured",
    is_flag=True,
    help="Measure what quantizing cost and keep it in the artifact, as calibrated recipes do anyway.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--force", is_flag=True, help="Replace OUT even if it is not an artifact.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="OUT", help="Artifact to write; by default NAME.smc."
)
@verbosity_options
def compile(
    target: str,
    emit: tuple[str, Path] | None,
    without: str | None,
    standalone: bool,
    functions_file: Path | None,
    records: Path | None,
    no_verify: bool,
    measured: bool,
    as_json: bool,
    force: bool,
    out: Path | None,
    **source: Any,
) -> None:
    """Compile MODEL to an artifact, one runnable file.

    An artifact needs neither torch nor tvm: `smc run` runs it, here or on another machine of the target's kind.
    MODEL is a folder in the Hugging Face layout, a model id of the Hugging Face hub, or a .gguf file.
    Passes run in the order given, then the recipe. The first pass that quantizes a matrix decides its format. Without
    passes, --quant, --bits and --recipe a quantized checkpoint keeps its codes, and floats get the recipe int4.

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
    from smc.targets import find_target

    machine, wanted = find_target(target), _Source(**source)
    requests = wanted.requests()
    options = {"records": records, **_emit(emit), **_without(without), **_executable(standalone, functions_file)}
    inputs = [*wanted.files(), *(path for path in (records, functions_file) if path)]
    with StageProgress() as progress, orderly_end():
        if out is not None:
            _check_output(out, inputs, force)
        checkpoint = wanted.read(progress)
        if out is None:
            out = Path(f"{_file_name(checkpoint.facts.name)}.smc")
            _check_output(out, inputs, force)
        module, quantized, steps = wanted.change(checkpoint, requests, progress)
        quality = _measured(checkpoint, module, requests, wanted.calib, measured, progress)
        _check_space(out, module, standalone)
        progress.detail(f"target: {machine.name}, levels {', '.join(level.name for level in machine.levels)}")
        options |= {"verify": not no_verify, "quality": quality, "progress": progress.update}
        report = smc.compile(module, target, out, **options)
        if report.no_chat is not None:
            progress.note(
                f"the executable can only continue plain text (--raw), not chat: the chat template {report.no_chat}"
            )
        if steps is not None:
            proof = f"verified: {report.proof}" if report.proof else "not verified"
            add_artifact(steps, "compile", f"for {machine.name}; {proof}", out, report.bytes)
    write_page(wanted.report, steps)
    _print_summary({**_summary(module, out, report, quality, progress), "quantized": quantized}, as_json)


def _measured(
    before: Module,
    module: Module,
    requests: list[Request],
    calib: Path | None,
    wanted: bool,
    progress: StageProgress,
) -> QualityFacts | None:
    """What quantizing cost: if that is wanted, or a pass is calibrated and it can be measured; else None."""
    from smc.cli.quality import measure, warning

    if not wanted and all("calibration" not in step.needs for request in requests for step in request.passes):
        return None
    try:
        quality = measure(before, module, calib, lambda fraction: progress.update("measure quality", fraction))
    except InputError as error:
        if wanted:
            raise
        progress.note(f"the quality is not measured: {error}")
        return None
    if (sentence := warning(quality)) is not None:
        progress.note(f"warning: {sentence}")
    return quality


def _emit(option: tuple[str, Path] | None) -> dict[str, Any]:
    """--emit as options of `smc.compile`."""
    from smc.codegen.dumps import KINDS
    from smc.codegen.output import output_folder

    if option is None:
        return {}
    kinds = _names("--emit", option[0], KINDS)
    output_folder(option[1])
    return {"emit": option[1], "emit_kinds": kinds}


def _executable(standalone: bool, functions_file: Path | None) -> dict[str, Any]:
    """--standalone and --functions as options of `smc.compile`."""
    from smc.structured.functions import read_functions

    if functions_file is None:
        return {"standalone": standalone}
    if not standalone:
        raise InputError("--functions belongs to --standalone: `smc run` and `smc chat` take functions themselves")
    return {"standalone": True, "functions": tuple(read_functions(functions_file))}


def _without(option: str | None) -> dict[str, Any]:
    """--without as an option of `smc.compile`."""
    from smc.codegen.schedule.fast_paths import FAST_PATHS

    return {"without": _names("--without", option, FAST_PATHS)} if option else {}


def _names(option: str, text: str, known: Collection[str]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in known:
            raise InputError(f"{option} takes {', '.join(known)}, separated by commas, not {name!r}")
    return names


def _file_name(name: str) -> str:
    """A model's name without characters that a file name should not have."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".-") or "model"


def _check_output(out: Path, inputs: list[Path], force: bool) -> None:
    from smc.codegen.output import output_file

    file = output_file(out, inputs)
    if not force and file.is_file() and file.stat().st_size and not _is_ours(file):
        raise InputError(
            f"the output {out} exists and is not an artifact: name another file, or replace it with --force"
        )


def _is_ours(out: Path) -> bool:
    from smc.runtime.artifact import read_manifest

    try:
        read_manifest(out)
    except InputError:
        return False
    return True


def _check_space(out: Path, module: Module, standalone: bool) -> None:
    """Raise InputError before the long work starts if the disk has no room for the weights."""
    # An executable also has tables of the tokenizer, which are about as large.
    tokenizer = len((module.facts.tokenizer or "").encode()) * (2 if standalone else 1)
    needed = module.stored_bits() // 8 + tokenizer + PROGRAM_BYTES
    free = shutil.disk_usage(out.absolute().parent).free
    if free < needed:
        raise InputError(
            f"there is not enough disk space for {out}: it needs about {needed / 1e6:,.0f} MB, "
            f"{out.absolute().parent} has {free / 1e6:,.0f} MB"
        )


def _summary(
    module: Module, out: Path, report: CompileReport, quality: QualityFacts | None, progress: StageProgress
) -> dict[str, Any]:
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
        **({} if quality is None else {"quality": {**asdict(quality), "text": str(quality)}}),
    }


def _print_summary(summary: dict[str, Any], as_json: bool) -> None:
    from smc.runtime.manifest import ProofFacts

    if as_json:
        click.echo(json.dumps(summary, indent=2))
    if as_json or messages.is_quiet():
        return
    seconds = summary["seconds"]
    rows = {
        "size": f"{summary['bytes'] / 1e6:,.1f} MB, {summary['bits_per_weight']:.2f} bits per weight "
        f"({summary['weights'] / 1e6:,.1f} million weights)",
        "quantized": summary["quantized"],
        "embedding": summary["embedding"],
        "head": summary["head"],
        **({"quality": summary["quality"]["text"]} if "quality" in summary else {}),
        "levels": ", ".join(summary["levels"]),
        "verified": str(ProofFacts(**proof)) if (proof := summary["proof"]) else "no: --no-verify",
        **({"executable": f"{summary['executable_bytes'] / 1e6:.1f} MB of it"} if summary["standalone"] else {}),
        "time": f"{sum(seconds.values()):.1f} s",
    }
    click.secho(summary["out"], bold=True)
    for name, text in rows.items():
        click.echo(f"  {name.ljust(10)} {text}")
