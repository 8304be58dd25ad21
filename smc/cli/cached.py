"""Compiles checkpoints that are run into the cache; `smc list` and `smc rm` for that cache."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from smc.cli import messages
from smc.cli.options import verbosity_options
from smc.errors import InputError


def cached_artifact(source: str) -> Path:
    """The artifact of a model; a checkpoint is compiled into the cache, with progress shown."""
    from smc.model_cache import artifact_of, is_checkpoint

    if not is_checkpoint(source):
        return Path(source)
    from smc.cli.progress import StageProgress
    from smc.cli.signals import orderly_end

    with StageProgress() as progress, orderly_end():
        return artifact_of(source, progress.update)


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@verbosity_options
def list_models(as_json: bool) -> None:
    """List the checkpoints that were compiled into the cache because they were run or served.

    \b
    Example:
      smc list --json
    """
    from smc.model_cache import as_json as entry_as_json
    from smc.model_cache import cached_models

    models = cached_models()
    if as_json:
        click.echo(json.dumps([entry_as_json(model) for model in models]))
        return
    if not models:
        messages.note("(no models in the cache: smc run, chat and serve compile a checkpoint into it)")
    for model in models:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(model.made))
        click.echo(f"{model.name}  {model.bytes / 1e6:,.1f} MB  {made}  {model.source}")


@click.command("rm")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Remove all models.")
@verbosity_options
def remove_models(names: tuple[str, ...], everything: bool) -> None:
    """Remove models from the cache, by their names or their sources as `smc list` shows them.

    \b
    Example:
      smc rm --all
    """
    from smc.model_cache import cached_models, remove_model

    if bool(names) == everything:
        raise InputError("name the models to remove, as `smc list` shows them, or give --all")
    for name in [model.name for model in cached_models()] if everything else names:
        removed = remove_model(name)
        messages.note(f"removed {removed.name}, {removed.bytes / 1e6:,.1f} MB")
