"""A proxy for speed on ARM where there is no board: instructions a token, side by side with llama.cpp.

    python -m benchmarks.instructions [--level dotprod] [--prefill 128] [--by-symbol] [--ours-only]

Both programs run the same model with one thread under qemu's user emulation, whose plugin counts every instruction
(`benchmarks.qemu`). Figures are differences of two runs of one program, so start-up and loading drop out: decode is
32 tokens behind 16 less those 16, prefill is two prompts less one. llama.cpp is cross-built for each level and counts
with the better of its flash attention on and off. Its counts are kept under benchmarks/build/; ours are taken anew.

A count says nothing about caches, pipelines or memory: `benchmarks.instructions_mca` tells how fast a core of a given
kind can go through the inner loops.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import inputs, instructions_own, instructions_peer, peer, qemu
from benchmarks.instructions_peer import LEVELS, Level
from benchmarks.speed import numbers

DECODE_DEPTH, DECODE_TOKENS = 16, 32


@dataclass(frozen=True)
class Case:
    """One figure: prefill of `tokens` into an empty cache, or decode of `tokens` one by one behind `depth` others."""

    kind: str  # "prefill" or "decode"
    tokens: int
    depth: int = 0

    @property
    def name(self) -> str:
        """Such as "prefill 128"."""
        return f"{self.kind} {self.tokens}"

    def own_runs(self, program: instructions_own.Program) -> tuple[list[str], list[str]]:
        """The longer and the shorter run of our driver."""
        context = self.depth + self.tokens
        if self.kind == "prefill":
            return program.command(context, self.tokens, 0, 2), program.command(context, self.tokens, 0, 1)
        return program.command(context, 0, context, 1), program.command(context, 0, self.depth, 1)

    def peer_runs(self, level: Level, gguf: Path, flash_attention: int) -> tuple[list[str], list[str]]:
        """The longer and the shorter run of llama-bench."""

        def run(prompt: int, decode: int, repeat: int) -> list[str]:
            sizes = {"-p": prompt, "-n": decode, "-r": repeat, "-fa": flash_attention}
            return instructions_peer.command(level, gguf, [str(word) for item in sizes.items() for word in item])

        if self.kind == "prefill":
            return run(self.tokens, 0, 2), run(self.tokens, 0, 1)
        return run(0, self.depth + self.tokens, 1), run(0, self.depth, 1)


@dataclass(frozen=True)
class Counts:
    """Instructions a token of one program, by function."""

    functions: dict[str, float]

    @property
    def total(self) -> float:
        """Of all functions."""
        return sum(self.functions.values())


def count(runs: tuple[list[str], list[str]], tokens: int, cpu: str) -> tuple[Counts, str]:
    """What a token takes by the difference of two runs of one program, and the output of the first."""
    longer, output = qemu.profile(runs[0], cpu)
    shorter, _ = qemu.profile(runs[1], cpu)
    symbols = qemu.Symbols.of(Path(runs[0][0]))
    return Counts(per_token((longer - shorter).by_symbol(symbols), tokens)), output


def per_token(instructions: Counter[str], tokens: int) -> dict[str, float]:
    """Instructions of each function divided by the number of tokens, the largest first; arguments are cut off names."""
    functions: Counter[str] = Counter()
    for name, value in instructions.items():
        functions[name.partition("(")[0]] += value
    return {name: value / tokens for name, value in functions.most_common() if value}


def count_own(level: Level, program: instructions_own.Program, case: Case) -> tuple[Counts, dict[str, Any]]:
    """smc's counts, and what the driver says of the engine."""
    counts, output = count(case.own_runs(program), case.tokens, level.cpu)
    facts = json.loads(output)
    if facts["level"] != level.name:
        raise SystemExit(f"on qemu's {level.cpu} the engine ran its level {facts['level']}, not {level.name}")
    return counts, facts


def count_peer(level: Level, gguf: Path, case: Case) -> Counts:
    """llama.cpp's counts at its better setting of flash attention; taken once and kept."""
    key = repr((peer.VERSION, level, gguf.name, gguf.stat().st_mtime_ns, case))
    kept = instructions_own.BUILD / f"llama.cpp-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not kept.is_file():
        runs = [case.peer_runs(level, gguf, flash_attention) for flash_attention in (0, 1)]
        best = min((count(pair, case.tokens, level.cpu)[0] for pair in runs), key=lambda counts: counts.total)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(best.functions, indent=1) + "\n", encoding="utf-8")
    return Counts(json.loads(kept.read_text(encoding="utf-8")))


def gguf_bytes_per_token(path: Path) -> int:
    """Bytes of a GGUF file's tensors that one token multiplies: all but an embedding table that is not the head too."""
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    if "output.weight" in sizes:
        sizes.pop("token_embd.weight")
    return sum(sizes.values())


def print_functions(title: str, counts: Counts) -> None:
    """The functions that make up 99 % of the counts."""
    click.echo(f"    {title}")
    shown = 0.0
    for name, value in counts.functions.items():
        click.echo(f"    {value / 1e6:12.3f}  {value / counts.total:6.1%}  {name}")
        shown += value
        if shown > 0.99 * counts.total:
            break


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--quant", default="int4-plain", show_default=True, help="The recipe to compile with.")
@click.option("--peer", "format", default="Q4_0-pure", show_default=True, help="llama.cpp's format.")
@click.option(
    "--level", "levels", multiple=True, type=click.Choice(list(LEVELS)), help="Some of them; may be repeated."
)
@click.option("--prefill", default="128", show_default=True, callback=numbers, help="Prompt lengths.")
@click.option("--by-symbol", is_flag=True, help="Also where the instructions are.")
@click.option("--ours-only", is_flag=True, help="Without llama.cpp.")
@click.option("--peer-only", is_flag=True, help="llama.cpp alone.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there too.")
def main(
    model: Path | None,
    quant: str,
    format: str,
    levels: Sequence[str],
    prefill: list[int],
    by_symbol: bool,
    ours_only: bool,
    peer_only: bool,
    json_file: Path | None,
) -> None:
    """Count and print the table, in millions of instructions a token."""
    model = model or inputs.offgrid_model()
    type, _, pure = format.partition("-")
    program = None if peer_only else instructions_own.build(model, quant)
    gguf = None if ours_only else peer.convert(model, type, pure=bool(pure))
    cases = [Case("decode", DECODE_TOKENS, DECODE_DEPTH)] + [Case("prefill", tokens) for tokens in prefill]
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    click.echo(f"{'10⁶ instructions a token':<28}{'smc':>10}{'llama.cpp':>12}{'ratio':>8}")
    for level in [LEVELS[name] for name in levels or LEVELS]:
        for case in cases:
            row: dict[str, Any] = {"level": level.name, "case": case.name}
            own, other = None, None
            if program:
                own, facts = count_own(level, program, case)
                row["smc"] = own.functions
            if gguf:
                other = count_peer(level, gguf, case)
                row["llama_cpp"] = other.functions
            rows.append(row)
            cells = [f"{counts.total / 1e6:.2f}" if counts else "" for counts in (own, other)]
            ratio = f"{own.total / other.total:.2f}×" if own and other else ""
            click.echo(f"{level.name:<10}{case.name:<18}{cells[0]:>10}{cells[1]:>12}{ratio:>8}")
            for title, counts in (("smc", own), ("llama.cpp", other)):
                if by_symbol and counts:
                    print_functions(title, counts)
    own_bytes = f"{facts['token_weight_bytes'] / 1e6:.2f}" if facts else ""
    peer_bytes = f"{gguf_bytes_per_token(gguf) / 1e6:.2f}" if gguf else ""
    click.echo(f"{'MB of weights a token reads':<28}{own_bytes:>10}{peer_bytes:>12}")
    if json_file:
        figures = {"model": model.name, "smc": quant, "llama_cpp": format, "rows": rows}
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
