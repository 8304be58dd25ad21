"""Speed side by side with llama.cpp, on the same model and the same number of threads.

    python -m benchmarks.speed [--quant int4-plain] [--peer Q4_0-pure] [--level avx2] [--threads 2] [--rounds 5]

Both programs run in every round, in alternating order, so that what else the machine does and how warm it is hits
both. In each round llama.cpp counts with the better of its flash attention on and off. The table shows
medians of tokens per second over the rounds, and the median, lowest and highest ratio of a round. With a level both
programs do without the instructions that it lacks. `--json FILE` keeps the figures.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks import inputs, peer


@dataclass
class Case:
    """One figure: prefill of `tokens` into an empty cache, or decode of `tokens` one by one behind `depth` others.

    With several sequences, each decodes so many tokens, all in the same steps; tokens/s are those of all together.
    """

    kind: str  # "prefill" or "decode"
    tokens: int
    depth: int = 0
    sequences: int = 1
    smc: list[float] = field(default_factory=list)  # tokens/s of each round
    llama_cpp: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Such as "prefill 512" or "decode 64 @ 1024"."""
        behind = f" @ {self.depth}" if self.depth else ""
        return f"{self.kind} {self.tokens}{behind}" + (f", {self.sequences} sequences" if self.sequences > 1 else "")

    @property
    def ratios(self) -> list[float]:
        """smc's speed as a multiple of llama.cpp's, round by round."""
        return [own / other for own, other in zip(self.smc, self.llama_cpp, strict=True)]

    def run_smc(self, artifact: Path, threads: int, level: str | None) -> None:
        """Add the tokens/s of one run of `smc bench`; level: the one to force."""
        prompt, decode = (self.tokens, 1) if self.kind == "prefill" else (1, self.tokens)
        command = [*inputs.SMC, "bench", str(artifact), "--threads", str(threads), "--json"]
        command += ["--prompt-tokens", str(prompt), "--decode-tokens", str(decode), "--depth", str(self.depth)]
        command += ["--sequences", str(self.sequences), "--repeat", "3"]
        command += ["--level", level] if level else []
        self.smc.append(run_json(command)[self.kind]["tokens_per_s"])

    def run_llama_cpp(self, gguf: Path, threads: int, level: str | None) -> None:
        """Add the tokens/s of one run of the level's llama-bench: the better of flash attention on and off."""
        if self.sequences > 1:
            assert level is None, "llama-batched-bench is built for this CPU's best level only"
            self.llama_cpp.append(max(self._run_batched_bench(gguf, threads, flash) for flash in ("off", "on")))
            return
        prompt, decode = (self.tokens, 0) if self.kind == "prefill" else (0, self.tokens)
        command = [str(peer.build(level) / "llama-bench"), "-m", str(gguf), "-t", str(threads), "-fa", "0,1", "-r", "1"]
        command += ["-p", str(prompt), "-n", str(decode), "-d", str(self.depth), "-o", "json"]
        self.llama_cpp.append(max(result["avg_ts"] for result in run_json(command)))

    def _run_batched_bench(self, gguf: Path, threads: int, flash: str) -> float:
        """Decoding of several sequences, for which llama.cpp has a program of its own; flash: "on" or "off"."""
        size = self.sequences * (self.depth + self.tokens) + 64  # and what it warms up with
        command = [str(peer.build() / "llama-batched-bench"), "-m", str(gguf), "-t", str(threads), "-fa", flash]
        command += ["-c", str(size), "-npp", str(self.depth), "-ntg", str(self.tokens), "-npl", str(self.sequences)]
        return float(run_json([*command, "--output-format", "jsonl"])["speed_tg"])


def run_json(command: list[str]) -> Any:
    """What a command prints on its standard output, which is JSON."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"this command failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def run_rounds(
    cases: list[Case], artifact: Path, gguf: Path, threads: int, rounds: int, level: str | None = None
) -> None:
    """Fill the cases with one figure a round for each side."""
    with click.progressbar(length=rounds * len(cases), label=f"{threads} threads") as progress:
        for number in range(rounds):
            for case in cases:
                runs = [(case.run_smc, artifact), (case.run_llama_cpp, gguf)]
                for run, file in runs if number % 2 == 0 else reversed(runs):
                    run(file, threads, level)
                progress.update(1)


def print_table(cases: list[Case]) -> None:
    """One line a case."""
    click.echo(f"{'tokens/s':<20}{'smc':>10}{'llama.cpp':>12}{'ratio':>9}   lowest – highest")
    for case in cases:
        own, other, ratios = statistics.median(case.smc), statistics.median(case.llama_cpp), case.ratios
        click.echo(
            f"{case.name:<20}{own:>10.1f}{other:>12.1f}{statistics.median(ratios):>8.2f}×"
            f"   {min(ratios):.2f} – {max(ratios):.2f}"
        )


def numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """Numbers behind one option, separated by commas."""
    try:
        return [int(part) for part in value.split(",") if part]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 128,512") from None


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--quant", default="int4-plain", show_default=True, help="The recipe to compile with.")
@click.option("--peer", "format", default="Q4_0-pure", show_default=True, help="llama.cpp's format.")
@click.option("--level", type=click.Choice(list(peer.LEVELS)), help="Below this CPU's best, for both programs.")
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--prefill", default="128,512", show_default=True, callback=numbers, help="Prompt lengths.")
@click.option("--decode", default=64, show_default=True, help="Tokens to decode.")
@click.option("--depth", default="0", show_default=True, callback=numbers, help="Cache lengths to decode behind.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there too.")
def main(
    model: Path | None,
    quant: str,
    format: str,
    level: str | None,
    threads: int,
    rounds: int,
    prefill: list[int],
    decode: int,
    depth: list[int],
    json_file: Path | None,
) -> None:
    """Measure and print the table."""
    peer.build(level)
    model = model or inputs.offgrid_model()
    artifact = inputs.artifact(model, quant)
    type, _, pure = format.partition("-")
    gguf = peer.convert(model, type, pure=bool(pure))
    cases = [Case("prefill", tokens) for tokens in prefill] + [Case("decode", decode, tokens) for tokens in depth]
    run_rounds(cases, artifact, gguf, threads, rounds, level)
    instructions = level or "all instructions"
    click.echo(f"{inputs.machine()}; {instructions}; {threads} threads")
    click.echo(f"{model.name}, smc {quant}, llama.cpp {format}; {rounds} rounds")
    print_table(cases)
    if json_file:
        figures = {
            "machine": inputs.machine(),
            "level": level,
            "threads": threads,
            "model": model.name,
            "smc": quant,
            "llama_cpp": format,
            "cases": [asdict(case) | {"ratio": case.ratios} for case in cases],
        }
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
