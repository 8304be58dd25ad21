"""The README's picture of a terminal, docs/terminal.svg, from a real run.

    python -m benchmarks.terminal

SmolLM2-135M-Instruct is compiled and answers a question. The picture shows the output of the commands without their
seconds: docs/benchmarks.md has those of an idle machine.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from benchmarks import inputs

PICTURE = Path(__file__).parent.parent / "docs" / "terminal.svg"
MODEL = "SmolLM2-135M-Instruct.gguf"
WIDTH = 108
COMMANDS = (
    f"smc compile {MODEL} --quant int4 -o smollm2.smc",
    'smc run smollm2.smc "What is the capital of France?"',
    f"smc compile {MODEL} --quant int4 --target arm64 --standalone -o smollm2",
)


def run(command: str, folder: Path) -> str:
    """What a command prints."""
    words = [*inputs.SMC, *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"this command failed: {command}\n{done.stderr}")
    return "\n".join(line for line in done.stdout.rstrip().splitlines() if not line.startswith("  time "))


def picture(transcript: Sequence[tuple[str, str]]) -> str:
    """SVG of commands and what they print."""
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        for command, output in transcript:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            console.print(Text(output))
        return console.export_svg(title="smc")


@click.command(help=__doc__)
def main() -> None:
    """Run the commands and write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "benchmarks.models", "smollm2-gguf", str(folder / MODEL)], check=True)
        PICTURE.write_text(picture([(command, run(command, folder)) for command in COMMANDS]), encoding="utf-8")


if __name__ == "__main__":
    main()
