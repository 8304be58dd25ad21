"""Measures smc on an NVIDIA GPU, within eight minutes: bandwidth and barriers, equal bits, tokens per second, peers.

    python -m benchmarks.cuda [--out report.json]    here: makes the kit and runs it
    python -m benchmarks.cuda --kit DIR              makes the kit: for a machine that has Python and the driver alone

There: `python3 DIR/run.py`, which writes report.json. llama.cpp is measured where llama-bench is in the kit or the
search path, torch where it finds the GPU, and compute-sanitizer watches where it is installed. Programs are compiled
when the kit is made; the weights of large models are made there, from a few packed rows of each matrix.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click

from benchmarks.inputs import BUILD

MOST_BYTES = 60 << 20


@click.command(help=__doc__)
@click.option("--kit", type=click.Path(path_type=Path), metavar="DIR", help="Only make the kit, in a new folder.")
@click.option("--target", default="cuda", show_default=True, help="The GPUs that the kit is for.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("report.json"), help="The report.")
@click.option(
    "--llama-bench",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="llama.cpp's program, built for that GPU, for the kit; left out where it does not fit.",
)
@click.option("--small", is_flag=True, help="One tiny model of each kind.")
def cli(kit: Path | None, target: str, out: Path, llama_bench: Path | None, small: bool) -> None:
    """Make the kit; run it."""
    from benchmarks.cuda_kit.build import make_kit

    folder = kit or BUILD / f"cuda-kit-{target}"
    if kit is not None and folder.exists():
        raise click.ClickException(f"{folder} is there already: name a folder that can be made")
    if not folder.exists():
        size = make_kit(folder, target, small)
        size += _add_llama_bench(folder, llama_bench, size) if llama_bench else 0
        click.echo(f"{folder}: {size / 2**20:.1f} MiB")
        if size > MOST_BYTES:
            raise click.ClickException(f"the kit has {size / 2**20:.0f} MiB, and 60 are allowed")
    if kit is None:
        command = [sys.executable, str(folder / "run.py"), "--out", str(out), *(["--small"] if small else [])]
        sys.exit(subprocess.run(command, check=False).returncode)


def _add_llama_bench(folder: Path, program: Path, size: int) -> int:
    """Copy llama.cpp's program to a kit of that size, if there is room; the bytes that were added."""
    added = program.stat().st_size
    if size + added > MOST_BYTES:
        click.echo(f"{program} has {added / 2**20:.0f} MiB, for which the kit has no room: it is left out")
        return 0
    shutil.copy(program, folder / "llama-bench")
    return added


if __name__ == "__main__":
    cli()
