"""`smc targets`: the machines that smc compiles for."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def targets(as_json: bool) -> None:
    """List the machines that smc compiles for.

    An artifact brings machine code for the feature levels listed; the best one that the CPU has is picked when the
    artifact is loaded.

    \b
    Example:
      smc targets --json
    """
    from smc.targets import TARGETS

    if as_json:
        described = {
            name: {
                "description": target.description,
                "machine": target.machine,
                "system": target.system,
                "triple": target.llvm_triple,
                "levels": [{"name": level.name, "features": list(level.features)} for level in target.levels],
            }
            for name, target in TARGETS.items()
        }
        click.echo(json.dumps(described, indent=2))
        return
    for target in TARGETS.values():
        click.echo(f"{click.style(target.name, bold=True)}: {target.description} ({target.llvm_triple})")
        width = max(len(level.name) for level in target.levels)
        for level in target.levels:
            click.echo(f"  {level.name.ljust(width)}  {' '.join(level.features)}")
    click.echo(f"{click.style('native', bold=True)}: this machine's own CPU")
