"""`smc tune`: which candidate of each kernel is fastest on a machine."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smc.cli import messages
from smc.cli.options import complete_target, verbosity_options
from smc.cli.output import check_replaceable
from smc.cli.pass_options import Request, calibration_options, pass_options, read_requests, run_requests
from smc.cli.signals import orderly_end
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.codegen.cpu.tuning_kit import Matrix, Workloads
    from smc.targets import CpuLevel, Target

SMALLEST_WEIGHTS = 64 << 20
"""Weights take at least so many bytes, so that they do not stay in a cache."""


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...", type=click.Path())
@pass_options
@calibration_options
@click.option(
    "--target",
    default="native",
    show_default=True,
    shell_complete=complete_target,
    help="Machine to tune for; any but this one needs --emit-kit.",
)
@click.option(
    "--level",
    "names",
    multiple=True,
    metavar="NAME",
    help="CPU feature level to tune; by default all; may be given again.",
)
@click.option("--seconds", type=click.FloatRange(1), metavar="S", help="Approximate time for measuring, in seconds.")
@click.option(
    "--emit-kit",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Program to write, which measures on another machine.",
)
@click.option(
    "--import",
    "imported",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Add records that a kit printed; may be given again.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="RECORDS",
    help="File for the records; by default the user's own records.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@verbosity_options
def tune(
    models: tuple[str, ...],
    quant: str | None,
    passes: tuple[str, ...],
    recipe: Path | None,
    bits: float | None,
    calib: Path | None,
    work: Path | None,
    target: str,
    names: tuple[str, ...],
    seconds: float | None,
    emit_kit: Path | None,
    imported: tuple[Path, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure which variant of each kernel is fastest for the shapes of MODELs, and write that as tuning records.

    From then on `smc compile` uses the records. They change speed, but no bit of a result. MODEL is what `smc compile`
    takes, or an artifact; without one, smc measures common shapes with the encodings of the recipes. Shapes that have
    records are not measured again, so an interrupted run continues where it stopped.

    To tune a device without Python, run a kit there: a program that prints records, which --import reads here.

    \b
    Examples:
      smc tune SmolLM2-135M-Instruct.gguf
      smc tune SmolLM2-135M-Instruct.gguf --target raspberry-pi-4 --emit-kit kit
      smc tune --import records.jsonl        # there: ./kit > records.jsonl
    """
    from smc.codegen.cpu.tuning import user_records
    from smc.codegen.output import output_file
    from smc.targets import find_target

    records = out or user_records()
    if records is None:
        raise InputError("there is no home folder for the tuning records: name a file with -o RECORDS or $SMC_RECORDS")
    if records.is_dir():
        raise InputError(f"{records} is a folder: name a file for the tuning records")
    if out is not None:
        output_file(out, [Path(model) for model in models])
    if imported:
        if models or emit_kit:
            raise InputError("--import only reads records: leave out MODEL and --emit-kit")
        _import(imported, records, as_json)
        return
    machine = find_target(target)
    levels = _levels(machine, names)
    if emit_kit is None and machine != find_target("native"):
        raise InputError(f"{target} can't be measured here: write a program for it with --emit-kit FILE")
    if emit_kit is not None:
        output_file(emit_kit, [Path(model) for model in models])
    requests = read_requests(passes, quant, recipe, bits)
    named = bool(quant or bits or passes or recipe)
    matrices = _matrices(models, requests, named, calib, work)
    if emit_kit is not None:
        _emit(matrices, machine, levels, emit_kit, as_json)
    else:
        _measure(matrices, machine, levels, seconds, records, as_json)


def _levels(machine: Target, names: tuple[str, ...]) -> list[CpuLevel]:
    known = {level.name: level for level in machine.levels}
    for name in names:
        if name not in known:
            raise InputError(f"{machine.name} has no level {name!r}: there is {', '.join(known)}")
    return [level for level in machine.cpu_levels if not names or level.name in names]


# ---------------------------------------------------------------- what to measure


def _matrices(
    models: tuple[str, ...], requests: list[Request], named: bool, calib: Path | None, work: Path | None
) -> list[Matrix]:
    from smc.cli.inspect import is_artifact
    from smc.codegen.cpu.tuning_kit import artifact_matrices, standard_matrices

    if not models:
        if named:
            raise InputError("--quant, --bits, --pass and --recipe need a MODEL to compile: name one")
        return standard_matrices()
    matrices: list[Matrix] = []
    for model in models:
        if is_artifact(Path(model)):
            matrices += artifact_matrices(Path(model))
        else:
            matrices += _model_matrices(model, requests, calib, work)
    return matrices


def _model_matrices(model: str, requests: Sequence[Request], calib: Path | None, work: Path | None) -> list[Matrix]:
    from smc.cli.pass_options import work_folder as state_folder
    from smc.codegen.cpu.tuning_kit import plan_matrices
    from smc.codegen.plan.planner import make_plan
    from smc.frontend import load_checkpoint
    from smc.passes import FUSIONS
    from smc.passes import apply as apply_passes

    module = run_requests(load_checkpoint(model), requests, calib, lazy=True, work=state_folder(work))
    return plan_matrices(make_plan(apply_passes(module, FUSIONS)))


# ---------------------------------------------------------------- the three ways


def _emit(matrices: list[Matrix], machine: Target, levels: list[CpuLevel], kit: Path, as_json: bool) -> None:
    from smc.cli.progress import StageProgress
    from smc.codegen.cpu.tuning_kit import build_kit, weight_bytes, workloads

    check_replaceable(kit, "kit", b"\x7fELF")
    with StageProgress() as progress, orderly_end():
        count = build_kit(
            workloads(matrices),
            machine,
            kit,
            levels=levels,
            weights=max(weight_bytes(matrices), SMALLEST_WEIGHTS),
            progress=progress.update,
        )
    if as_json:
        facts = {"kit": str(kit), "target": machine.name, "measurements": count, "bytes": kit.stat().st_size}
        click.echo(json.dumps(facts))
        return
    if messages.is_quiet():
        return
    click.secho(str(kit), bold=True)
    click.echo(f"  {kit.stat().st_size / 1e6:.1f} MB, {count} measurements, for {machine.name}")
    click.echo(f"  there:  ./{kit.name} > records.jsonl")
    click.echo("  here:   smc tune --import records.jsonl")


def _import(files: Sequence[Path], records: Path, as_json: bool) -> None:
    from smc.codegen.cpu.tuning import merge_records, read_records, write_records

    added = merge_records(*map(read_records, files))
    if not added:
        raise InputError(f"there are no tuning records in {', '.join(map(str, files))}")
    before = read_records(records) if records.exists() else []
    write_records(records, merge_records(before, added))
    cpus = sorted({record.cpu for record in added})
    if as_json:
        click.echo(json.dumps({"records": str(records), "added": len(added), "cpus": cpus}))
    elif not messages.is_quiet():
        click.echo(f"{records}: {len(added)} records of {', '.join(cpus)} added")


def _measure(
    matrices: list[Matrix], machine: Target, levels: list[CpuLevel], seconds: float | None, records: Path, as_json: bool
) -> None:
    from smc.cli.progress import StageProgress
    from smc.codegen.cpu.tuning import read_records
    from smc.codegen.cpu.tuning_kit import build_kit, weight_bytes, workloads
    from smc.codegen.output import work_folder

    if records.exists():
        read_records(records)  # refuse a file that has no records
    measured = workloads(matrices)
    records.parent.mkdir(parents=True, exist_ok=True)
    with StageProgress(still=True) as progress, orderly_end(), work_folder(records) as folder:
        kit, bytes_between = folder / "kit", max(weight_bytes(matrices), SMALLEST_WEIGHTS)
        build_kit(measured, machine, kit, levels=levels, weights=bytes_between, progress=progress.update)
        command = [str(kit), "--resume", str(records.absolute())]
        info = json.loads(subprocess.run([*command, "--info"], check=True, capture_output=True).stdout)
        if not info["levels"]:
            raise InputError(f"this CPU has none of the levels {', '.join(level.name for level in levels)}")
        budget = ["--seconds", str(seconds)] if seconds else []
        added = _run(command + budget, records, info["measurements"], progress.update)
    usable = [level for level in levels if level.name in info["levels"]]
    summary = _summary(measured, usable, records, info["cpu"]) | {"measured": added}
    if as_json or not messages.is_quiet():
        click.echo(json.dumps(summary, indent=2) if as_json else _table(summary))


def _run(command: list[str], records: Path, total: int, progress: Callable[[str, float], None]) -> int:
    """Run the tuner and append its output to the records, line by line. Returns the number of lines."""
    from smc.codegen.cpu.tuning import parse_record

    done = 0
    if total == 0:
        return 0
    _end_last_line(records)
    progress("measure", 0)
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        records.open("a", encoding="utf-8") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, encoding="utf-8") as tuner,
    ):
        assert tuner.stdout is not None
        try:
            for line in tuner.stdout:
                file.write(parse_record(line).line() + "\n")
                file.flush()
                done += 1
                progress("measure", done / total)
        except BaseException:
            tuner.kill()
            raise
        if tuner.wait() != 0:
            said.seek(0)
            text = said.read()[-2000:].strip()
            if tuner.returncode == 2:  # for example if there is too little memory
                raise InputError(text.splitlines()[-1] if text else "the tuner can't run here")
            raise RuntimeError(f"the tuner ended with status {tuner.returncode}:\n{text}")
    return done


def _end_last_line(path: Path) -> None:
    """If the file's last line has no end, add one, so that the next record gets its own line."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


# ---------------------------------------------------------------- what it brought


def _summary(measured: Workloads, levels: list[CpuLevel], records: Path, cpu: str) -> dict[str, Any]:
    from smc.codegen.cpu.tiles import candidates
    from smc.codegen.cpu.tuning import Tuning, read_records

    tuning = Tuning([read_records(records)], frozenset({cpu}))
    kernels = []
    for level in levels:
        for spec in measured:
            choice = tuning.choose(spec, level, measured)
            kernels.append(
                {
                    "kernel": spec.name(),
                    "level": level.name,
                    "default": next(iter(candidates(spec, level))),
                    "chosen": choice.name,
                    "speedup": round(choice.speedup, 3),
                }
            )
    return {"records": str(records), "cpu": cpu, "kernels": kernels}


def _table(summary: dict[str, Any]) -> str:
    """Print the summary for people."""
    kernels = summary["kernels"]
    width = max(len(row["kernel"]) for row in kernels)
    lines = [f"{summary['records']}: {summary['measured']} measurements of {summary['cpu']} added"]
    for row in kernels:
        gain = (
            "the default" if row["chosen"] == row["default"] else f"{row['speedup']:.2f}× as fast as {row['default']}"
        )
        lines.append(f"  {row['level']:<12}{row['kernel']:<{width}}  {row['chosen']:<6} {gain}")
    return "\n".join(lines)
