"""`smc targets`: the machines that smc compiles for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from smc.cli.options import verbosity_options

if TYPE_CHECKING:
    from smc.targets import Target


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@verbosity_options
def targets(as_json: bool) -> None:
    """List the machines that smc compiles for, and how each was tested.

    An artifact contains machine code for the listed feature levels. When it is loaded, smc picks the best level that
    the CPU has. The target of a single device has only the level that the device needs.

    \b
    Example:
      smc targets --json
    """
    from smc.targets import TARGETS

    if as_json:
        click.echo(json.dumps({name: _described(target) for name, target in TARGETS.items()}, indent=2))
        return
    kinds = [target for target in TARGETS.values() if len(target.levels) > 1]
    for target in kinds:
        click.echo(f"{click.style(target.name, bold=True)}: {target.description} ({target.llvm_triple})")
        width = max(len(level.name) for level in target.levels)
        for level in target.levels:
            click.echo(f"  {level.name.ljust(width)}  {' '.join(level.features)}")
        click.echo(f"  makes: {_makes(target)}")
        click.echo(f"  run:   {target.tested}")
    click.echo(f"{click.style('native', bold=True)}: this machine's own CPU")
    click.echo("devices:")
    devices = [target for target in TARGETS.values() if len(target.levels) == 1]
    width = max(len(target.name) for target in devices)
    for target in devices:
        name = click.style(target.name.ljust(width), bold=True)
        levels = ", ".join(level.name for level in target.levels)
        click.echo(f"  {name}  {levels.ljust(7)}  {target.description}; run: {target.tested}")


def _makes(target: Target) -> str:
    return "artifacts, standalone executables" if target.executable_target else "artifacts"


def _described(target: Target) -> dict[str, Any]:
    return {
        "description": target.description,
        "machine": target.machine,
        "system": target.system,
        "cpu": target.cpu,
        "triple": target.llvm_triple,
        "standalone": target.executable_target is not None,
        "tested": target.tested,
        "levels": [{"name": level.name, "features": list(level.features)} for level in target.levels],
    }
