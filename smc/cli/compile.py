"""`smc compile`: from a checkpoint to an artifact."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smc.errors import InputError

if TYPE_CHECKING:
    from smc.cli.progress import StageProgress
    from smc.codegen import CompileReport
    from smc.ir import Module
    from smc.passes import Pass

DEFAULT_RECIPE = "int4"
EMIT_KINDS = ("c", "tir", "asm", "obj")
PROGRAM_BYTES = 64 << 20
"""What is asked of the disk beside the weights: program, tokenizer, padding, object files."""


@click.command()
@click.argument("model")
@click.option("--target", default="native", show_default=True, help="Machine to compile for: see `smc targets`.")
@click.option("--quant", metavar="RECIPE", help="int8, int4, ternary …: see `smc passes`.")
@click.option(
    "-p", "--pass", "passes", multiple=True, metavar="NAME[:K=V,…]", help="Run a pass first; may be given again."
)
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE", help="A recipe of your own, in YAML.")
@click.option("--calib", type=click.Path(path_type=Path), metavar="FILE", help="Text for passes that take statistics.")
@click.option(
    "--emit", type=(str, click.Path(path_type=Path)), metavar="KINDS DIR", help="Also write c,tir,asm,obj to a folder."
)
@click.option("--standalone", is_flag=True, help="Make it an executable as well, which needs nothing but the machine.")
@click.option("--records", type=click.Path(path_type=Path), metavar="FILE", help="Tuning records: see `smc tune`.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="OUT", help="The artifact; by default NAME.smc.")
def compile(
    model: str,
    target: str,
    quant: str | None,
    passes: tuple[str, ...],
    recipe: Path | None,
    calib: Path | None,
    emit: tuple[str, Path] | None,
    standalone: bool,
    records: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Compile MODEL to an artifact, one runnable file.

    An artifact needs neither torch nor tvm: `smc run` runs it, here or on another machine of the target's kind.
    MODEL is a folder in the Hugging Face layout, a model id of the Hugging Face hub, or a .gguf file.
    Passes run in the order given, then the recipe. With neither --quant, --recipe nor a pass the recipe is int4.

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

    find_target(target)
    chain = read_passes(passes, quant, recipe)
    kinds = _emit_kinds(emit[0]) if emit else ()
    if calib is not None and not calib.is_file():
        raise InputError(f"there is no calibration text {calib}")
    with StageProgress() as progress:
        module, out = _read_model(model, out, chain, calib, progress)
        report = smc.compile(
            module,
            target,
            out,
            standalone=standalone,
            progress=progress.update,
            emit=emit[1] if emit else None,
            emit_kinds=kinds,
            records=records,
        )
        if report.no_chat is not None:
            progress.note(f"the executable can only continue plain text (--raw): the chat template {report.no_chat}")
    summary = _summary(module, out, report, progress)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    else:
        _print_summary(summary)


def _read_model(
    model: str, out: Path | None, chain: list[Pass], calib: Path | None, progress: StageProgress
) -> tuple[Module, Path]:
    """The module after its passes, and where the artifact goes: what can't be written there is refused early."""
    import smc
    from smc.passes import Context, apply

    if out is not None:
        _check_output(out, model)
    progress.update("read checkpoint", 0)
    module = smc.load_checkpoint(model)
    if out is None:
        out = Path(f"{_file_name(module.facts.name)}.smc")
        _check_output(out, model)
    progress.update("run passes", 0)
    module = apply(module, chain, Context(calibration=calib, report=progress.note))
    progress.update("run passes", 1)
    _check_space(out, module)
    return module, out


def read_passes(passes: tuple[str, ...], quant: str | None, recipe: Path | None) -> list[Pass]:
    """The passes to run. Refuses what can't be right before the checkpoint is read."""
    from smc.passes import load_recipe, parse_pass

    if quant is not None and recipe is not None:
        raise InputError("--quant and --recipe both name a recipe: give one of them")
    if recipe is not None and recipe.suffix not in (".yaml", ".yml"):
        raise InputError(f"a recipe file ends in .yaml, {recipe} does not; for a recipe of smc's use --quant")
    chain = [parse_pass(text) for text in passes]
    name = recipe or quant or (None if passes else DEFAULT_RECIPE)
    if name is not None:
        chain += load_recipe(name).passes
    return chain


def _emit_kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in EMIT_KINDS:
            raise InputError(f"--emit takes {', '.join(EMIT_KINDS)} with commas between, not {kind!r}")
    return kinds


def _file_name(name: str) -> str:
    """A model's name without what a file name should not have."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".-") or "model"


def _check_output(out: Path, model: str) -> None:
    if out.is_dir():
        raise InputError(f"the output {out} is a folder: name a file, such as {out / 'model.smc'}")
    if not out.absolute().parent.is_dir():
        raise InputError(f"there is no folder {out.parent} to write {out.name} into: make it first")
    if out.exists() and Path(model).exists() and out.samefile(model):
        raise InputError(f"the output {out} is the model itself: name another file")


def _check_space(out: Path, module: Module) -> None:
    """Refuse a disk that can't take the weights, before the long work starts."""
    needed = module.stored_bits() // 8 + PROGRAM_BYTES
    free = shutil.disk_usage(out.absolute().parent).free
    if free < needed:
        raise InputError(
            f"there is not enough disk space for {out}: it needs about {needed / 1e6:,.0f} MB, "
            f"{out.absolute().parent} has {free / 1e6:,.0f} MB"
        )


def _summary(module: Module, out: Path, report: CompileReport, progress: StageProgress) -> dict[str, Any]:
    def encoding(slot: str) -> str:
        tables = [call.attributes["parameters"] for call, _ in module.calls()]
        names = {table[slot] for table in tables if slot in table}
        return ", ".join(sorted({str(module.parameters[name].encoding) for name in names}))

    facts = asdict(report)
    del facts["stage_seconds"]  # `progress` has these stages too, with those before
    return {
        **facts,
        "out": str(out),
        "standalone": report.executable_bytes > 0,
        "model": module.facts.name,
        "weights": module.weight_count(),
        "embedding": encoding("embed_tokens"),
        "head": encoding("lm_head"),
        "seconds": {stage: round(seconds, 3) for stage, seconds in progress.seconds.items()},
    }


def _print_summary(summary: dict[str, Any]) -> None:
    seconds = summary["seconds"]
    rows = {
        "size": f"{summary['bytes'] / 1e6:,.1f} MB, {summary['bits_per_weight']:.2f} bits a weight "
        f"({summary['weights'] / 1e6:,.1f} million weights)",
        "embedding": summary["embedding"],
        "head": summary["head"],
        "levels": ", ".join(summary["levels"]),
        **({"executable": f"{summary['executable_bytes'] / 1e6:.1f} MB of it"} if summary["standalone"] else {}),
        "time": f"{sum(seconds.values()):.1f} s",
    }
    click.secho(summary["out"], bold=True)
    for name, text in rows.items():
        click.echo(f"  {name.ljust(10)} {text}")
