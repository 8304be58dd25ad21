"""`smc distill` and `smc train`: training from the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from smc.cli.optimize import OUT, finish, write
from smc.cli.options import verbosity_options
from smc.cli.pass_options import CALIB, Request, read_requests, training_options, work_folder
from smc.cli.progress import StageProgress
from smc.cli.signals import orderly_end
from smc.cli.step_report import REPORT
from smc.errors import InputError

CHINCHILLA = 20
"""Tokens per parameter that train a new model best for its compute (Hoffmann et al., arXiv 2203.15556)."""


@click.command()
@click.argument("model", type=click.Path())
@click.option("--data", multiple=True, required=True, metavar="FILE", help="File to train on; may be given again.")
@click.option("--minutes", type=float, metavar="N", help="Minutes to train; or give --steps or --tokens.")
@click.option("--steps", type=int, metavar="N", help="Steps to train.")
@click.option("--tokens", type=int, metavar="N", help="Tokens to train on.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="OPTION=VALUE",
    help="Another option of the pass (see `smc passes distill`); may be given again.",
)
@click.option(
    "-p",
    "--pass",
    "passes",
    multiple=True,
    metavar="NAME[:K=V,…]",
    help="Pass to run before training; may be given again.",
)
@CALIB
@training_options
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="Text to measure the perplexity on.")
@REPORT
@OUT
@verbosity_options
def distill(
    model: str,
    data: tuple[str, ...],
    minutes: float | None,
    steps: int | None,
    tokens: int | None,
    settings: tuple[str, ...],
    passes: tuple[str, ...],
    calib: Path | None,
    teacher: str | None,
    work: Path | None,
    text: Path | None,
    report: Path | None,
    out: Path,
) -> None:
    """Run passes on MODEL, train it to predict what it predicted before them, and write a checkpoint.

    The same as `smc optimize MODEL -p … -p distill:…`. With --teacher it learns from another model.

    \b
    Example:
      smc distill ./SmolLM2-135M -p drop-layers:layers=12-15+17+25 --data prose.txt --minutes 20 -o healed
    """
    from smc.passes import Distill
    from smc.passes.options import make_pass

    given = {"data": "+".join(data), "minutes": minutes, "steps": steps, "tokens": tokens}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set takes OPTION=VALUE, not {setting!r}")
        options[name] = value
    job = make_pass(Distill, options)
    requests = [*(read_requests(passes, None, None) if passes else []), Request("distill", (job,))]
    finish(model, requests, calib, teacher, work, text, report, out)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--work", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the state; by default in the cache."
)
@OUT
@verbosity_options
def train(config: Path, work: Path | None, out: Path) -> None:
    """Train a new model from scratch, as the YAML file CONFIG says, and write a checkpoint.

    CONFIG has `model` (a config of a supported family, or the config.json of one), `tokenizer` (a checkpoint's folder,
    or the number of tokens of a new one), `train` (options of the pass: `smc passes train`), and perhaps `text` (to
    measure the perplexity on) and `seed`. docs/training.md has an example.

    \b
    Example:
      smc train examples/ternary.yaml -o tiny
    """
    import smc

    plan = _plan(config)
    with StageProgress() as progress, orderly_end():
        from smc.passes import Train
        from smc.passes.options import make_pass

        job = make_pass(Train, plan["train"])
        assert isinstance(job, Train)
        module = _new_model(plan, job.data, config.stem)
        count = module.weight_count()
        progress.note(
            f"{count:,} weights; a rule of thumb for a new model is {CHINCHILLA} tokens per weight: "
            f"{CHINCHILLA * count:,} tokens"
        )
        result = smc.apply(
            module,
            [job],
            work=work_folder(work),
            report=progress.note,
            note=progress.note,
            progress=lambda fraction: progress.update("train", fraction),
        )
        text = plan.get("text")
        write(None, result, None if text is None else Path(text), out, progress)


def _plan(path: Path) -> dict[str, Any]:
    """The content of the file; InputError if it lacks a part."""
    import yaml

    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    wanted = {"model": (dict, str), "tokenizer": (int, str), "train": (dict,)}
    if not isinstance(plan, dict):
        raise InputError(f"{path} must have model, tokenizer and train")
    for key, types in wanted.items():
        if not isinstance(plan.get(key), types):
            raise InputError(f"{path} must have {key}: see docs/training.md")
    for key in plan:
        if key not in (*wanted, "text", "seed"):
            raise InputError(f"{path} has an unknown key {key!r}: there are {', '.join((*wanted, 'text', 'seed'))}")
    return plan


def _new_model(plan: Mapping[str, Any], data: tuple[str, ...], name: str) -> Any:
    from smc.frontend.fresh import new_model
    from smc.training.tokenizer import END, train_tokenizer

    values = plan["model"]
    if isinstance(values, str):
        try:
            values = json.loads(Path(values).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{plan['model']} is not a config.json: {error}") from None
    if isinstance(plan["tokenizer"], int):
        tokenizer = train_tokenizer([Path(file) for file in data], plan["tokenizer"])
        text, end, count = tokenizer.to_str(), tokenizer.token_to_id(END), tokenizer.get_vocab_size()
    else:
        from smc.frontend.folder_tokenizer import folder_tokenizer

        found = folder_tokenizer(Path(plan["tokenizer"]), str(values.get("model_type", "")))
        if found.text is None:
            raise InputError(f"{plan['tokenizer']} has no tokenizer")
        from tokenizers import Tokenizer

        text, end, count = found.text, found.eos, Tokenizer.from_str(found.text).get_vocab_size()
    return new_model({"vocab_size": count, **values}, name, text, end, int(plan.get("seed", 0)))
