"""`smc sweep`: tries settings on models, each compiled, evaluated and timed, in one report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smc.cli import messages
from smc.cli.options import verbosity_options
from smc.cli.progress import StageProgress
from smc.cli.signals import orderly_end
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.sweep import Cell, Outcome, Setting


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@click.option(
    "--text", type=click.Path(path_type=Path), required=True, metavar="FILE", help="UTF-8 text to evaluate on."
)
@click.option("--quant", multiple=True, metavar="RECIPE", help="Recipe to try (see `smc passes`); may be given again.")
@click.option(
    "--bits",
    multiple=True,
    type=click.FloatRange(1, 32),
    metavar="N",
    help="Bits per weight to try, as --bits of smc compile; may be given again.",
)
@click.option("-p", "--pass", "passes", multiple=True, metavar="NAME[:K=V,…]", help="Pass to try; may be given again.")
@click.option(
    "--recipe",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML recipe to try, a chain of passes; may be given again.",
)
@click.option(
    "--reference",
    type=click.Path(),
    metavar="MODEL",
    help="Model to compare with; by default each MODEL itself.",
)
@click.option(
    "--calib",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text file for passes that take statistics; by default the one that comes with smc.",
)
@click.option(
    "--windows", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Most windows of the text."
)
@click.option(
    "--window", type=click.IntRange(4), default=512, show_default=True, metavar="N", help="Tokens per window."
)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Settings that run at once."
)
@click.option(
    "--scheduler", metavar="ADDRESS", help="Dask scheduler that runs the settings, in place of processes here."
)
@click.option("--no-speed", is_flag=True, help="Do not measure tokens per second at the end.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("sweep"),
    show_default=True,
    metavar="DIR",
    help="Folder for results, artifacts and report.html; results in it are not computed again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@verbosity_options
def sweep(
    models: tuple[str, ...],
    text: Path,
    quant: tuple[str, ...],
    bits: tuple[float, ...],
    passes: tuple[str, ...],
    recipe: tuple[Path, ...],
    reference: str | None,
    calib: Path | None,
    windows: int,
    window: int,
    jobs: int,
    scheduler: str | None,
    no_speed: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Try settings on MODELs: compile each, evaluate it on a text and measure its speed; write a page, report.html.

    A MODEL that is quantized already is evaluated as it is, once: name GGUF files beside a float checkpoint, with
    --reference, to see smc's encodings beside llama.cpp's. If a sweep is interrupted, run it again: it continues.

    \b
    Examples:
      smc sweep ./SmolLM2 --quant int8 --quant int4 --quant q4 --text prose.txt -o sweep
      smc sweep ./SmolLM2 SmolLM2.Q4_K_M.gguf --reference ./SmolLM2 --bits 4.7 --text prose.txt
      smc sweep ./SmolLM2 -p ./log_levels.py:log-levels:group=64 -p quantize-rtn:bits=4 --text prose.txt
    """
    from smc.pages.sweep import sweep_page
    from smc.reference.text import read_text
    from smc.sweep import Setting, run_sweep

    settings = [
        *(Setting("quant", name) for name in quant),
        *(Setting("bits", f"{number:g}") for number in bits),
        *(Setting("pass", name) for name in passes),
        *(Setting("recipe", str(path)) for path in recipe),
    ]
    read_text(text)
    for setting in settings:
        setting.passes()
    cells = _cells(models, settings, reference, text, windows, window, calib)
    with StageProgress() as progress, orderly_end():
        outcomes = run_sweep(cells, out, jobs, scheduler, not no_speed, progress.update)
    results = [_as_json(outcome) for outcome in outcomes]
    (out / "report.html").write_text(sweep_page(results), encoding="utf-8")
    click.echo(json.dumps(results, indent=2) if as_json else _table(results))
    messages.note(f"wrote {out / 'report.html'}")
    if all(outcome.result is None for outcome in outcomes):
        raise InputError("no setting could be evaluated: see the errors above")


def _cells(
    models: tuple[str, ...],
    settings: list[Setting],
    reference: str | None,
    text: Path,
    windows: int,
    window: int,
    calib: Path | None,
) -> list[Cell]:
    """Every model with every setting; a quantized one as it is. InputError if a float model has no setting."""
    import smc
    from smc.sweep import Cell, Setting

    found = []
    for model in models:
        floats = all(parameter.encoding.is_float for parameter in smc.load_checkpoint(model).parameters.values())
        if floats and not settings:
            raise InputError(f"{model} has float weights and there is no setting: give --quant, --bits, -p or --recipe")
        if not floats and reference is None:
            raise InputError(f"{model} is quantized already: name the model that it came from with --reference")
        for setting in settings if floats else [Setting("kept")]:
            file = None if calib is None else str(calib)
            found.append(Cell(model, setting, reference or model, str(text), windows, window, file))
    return found


def _as_json(outcome: Outcome) -> dict[str, Any]:
    named = {"model": outcome.cell.model, "setting": str(outcome.cell.setting)}
    return outcome.result if outcome.result is not None else {**named, "error": outcome.error}


def _table(results: list[dict[str, Any]]) -> str:
    """Print the results for people."""
    head = ["model", "setting", "bits", "MB", "perplexity", "KL divergence", "top token", "tokens/s"]
    rows = [head]
    for result in results:
        name = [Path(result["model"]).name, result["setting"]]
        if "error" in result:
            rows.append([*name, result["error"]])
            continue
        quality, speed = result["quality"], result.get("speed")
        rows.append(
            [
                *name,
                f"{result['bits_per_weight']:.2f}",
                f"{result['bytes'] / 1e6:,.1f}",
                f"{quality['perplexity']:.3f}",
                f"{quality['kl_divergence']:.5f}",
                f"{100 * quality['same_top']:.1f} %",
                f"{speed['decode_tokens_per_s']:,.0f}" if speed else "",
            ]
        )
    widths = [max(len(row[i]) for row in rows if len(row) == len(head)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows
    )
