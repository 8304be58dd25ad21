"""A proxy for speed on ARM where there is no board: instructions per token, side by side with llama.cpp.

    python -m benchmarks.instructions [--level dotprod] [--case decode] [--prefill 128] [--by-symbol] [--ours-only]

Both programs run the same model with one thread under qemu's user emulation, whose plugin counts every instruction
(`benchmarks.qemu`). Figures are differences of two runs of one program, so start-up and loading drop out: decode is
32 tokens behind 16 less those 16, prefill is two prompts less one. llama.cpp is cross-built for each level and counts
with the better of its flash attention on and off. Its counts are kept under benchmarks/build/; smc's are counted each
time.

A count says nothing about caches, pipelines or memory: `benchmarks.instructions_mca` tells how fast a core of a given
kind can go through the inner loops.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import inputs, instructions_own, instructions_peer, peer, qemu
from benchmarks.instructions_peer import LEVELS, Level
from benchmarks.publish import Table, publish
from benchmarks.qemu import Profile
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


def count(runs: tuple[list[str], list[str]], cpu: str) -> tuple[Profile, str]:
    """The difference of two runs of one program, and the output of the first."""
    longer, output = qemu.profile(runs[0], cpu)
    shorter, _ = qemu.profile(runs[1], cpu)
    return longer - shorter, output


def count_own(level: Level, program: instructions_own.Program, case: Case) -> tuple[Profile, dict[str, Any]]:
    """smc's counts for all tokens of a case, and what the driver says of the engine."""
    profile, output = count(case.own_runs(program), level.cpu)
    facts = json.loads(output.splitlines()[-1])
    if facts["level"] != level.name:
        raise SystemExit(f"on qemu's {level.cpu} the engine ran its level {facts['level']}, not {level.name}")
    return profile, facts


def count_peer(level: Level, gguf: Path, case: Case) -> Profile:
    """llama.cpp's counts for all tokens of a case at its better setting of flash attention; taken once and kept."""
    program = instructions_peer.build(level)
    key = repr((program.stat().st_mtime_ns, level, gguf.name, gguf.stat().st_mtime_ns, case))
    kept = instructions_own.BUILD / f"llama.cpp-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not kept.is_file():
        runs = [case.peer_runs(level, gguf, flash_attention) for flash_attention in (0, 1)]
        best = min((count(pair, level.cpu)[0] for pair in runs), key=lambda profile: profile.instructions)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([[*block, runs] for block, runs in best.blocks.items()]) + "\n", encoding="utf-8")
    blocks = json.loads(kept.read_text(encoding="utf-8"))
    return Profile({(address, length): executions for address, length, executions in blocks})


def gguf_bytes_per_token(path: Path) -> int:
    """Bytes of a GGUF file's tensors that one token multiplies: all but an embedding table that is not the head too."""
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    if "output.weight" in sizes:
        sizes.pop("token_embd.weight")
    return sum(sizes.values())


def functions(profile: Profile, program: Path, case: Case) -> dict[str, float]:
    """Instructions per token of each function, the largest first."""
    counts = profile.by_symbol(qemu.Symbols.of(program))
    return {name: instructions / case.tokens for name, instructions in counts.most_common() if instructions}


def print_row(row: dict[str, Any], by_symbol: bool) -> None:
    """One line of the table, and where the instructions are."""
    sides = {title: row[title] for title in ("smc", "llama.cpp") if title in row}
    totals = {title: sum(side.values()) / 1e6 for title, side in sides.items()}
    cells = [f"{totals[title]:.2f}" if title in totals else "" for title in ("smc", "llama.cpp")]
    ratio = f"{totals['smc'] / totals['llama.cpp']:.2f}×" if len(totals) == 2 else ""
    click.echo(f"{row['level']:<10}{row['case']:<18}{cells[0]:>10}{cells[1]:>12}{ratio:>8}")
    for title, side in sides.items() if by_symbol else ():
        print_functions(title, side)


def print_functions(title: str, functions: dict[str, float]) -> None:
    """The functions that make up 99 % of the instructions per token."""
    click.echo(f"    {title}")
    total, shown = sum(functions.values()), 0.0
    for name, instructions in functions.items():
        if shown > 0.99 * total:
            break
        click.echo(f"    {instructions / 1e6:12.3f}  {instructions / total:6.1%}  {name[:80]}")
        shown += instructions


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The table of docs/benchmarks.md: a line per level, millions of instructions per token of both programs."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    columns = ["level", *(text for case in cases for text in (f"{case}: smc", "llama.cpp", "ratio"))]
    lines: dict[str, list[str]] = {}
    for row in rows:
        own, other = (sum(row[side].values()) / 1e6 for side in ("smc", "llama.cpp"))
        lines.setdefault(row["level"], [row["level"]]).extend([f"{own:.1f}", f"{other:.1f}", f"{own / other:.2f}"])
    return Table("", columns, list(lines.values()))


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--quant", default="int4-plain", show_default=True, help="The recipe to compile with.")
@click.option("--peer", "format", default="Q4_0-pure", show_default=True, help="llama.cpp's format.")
@click.option(
    "--level", "levels", multiple=True, type=click.Choice(list(LEVELS)), help="Some of them; may be repeated."
)
@click.option("--case", "kinds", multiple=True, type=click.Choice(["decode", "prefill"]), help="One of the two.")
@click.option("--prefill", default="128", show_default=True, callback=numbers, help="Prompt lengths.")
@click.option("--by-symbol", is_flag=True, help="Also where the instructions are.")
@click.option("--ours-only", is_flag=True, help="Without llama.cpp.")
@click.option("--peer-only", is_flag=True, help="llama.cpp alone.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there too.")
@click.option("--publish", "published", is_flag=True, help="Write the table for docs/benchmarks.md.")
def main(
    model: Path | None,
    quant: str,
    format: str,
    levels: Sequence[str],
    kinds: Sequence[str],
    prefill: list[int],
    by_symbol: bool,
    ours_only: bool,
    peer_only: bool,
    json_file: Path | None,
    published: bool,
) -> None:
    """Count and print the table, in millions of instructions per token."""
    model = model or inputs.offgrid_model()
    type, _, pure = format.partition("-")
    program = None if peer_only else instructions_own.build(model, quant)
    gguf = None if ours_only else peer.convert(model, type, pure=bool(pure))
    cases = [Case("decode", DECODE_TOKENS, DECODE_DEPTH)] + [Case("prefill", tokens) for tokens in prefill]
    cases = [case for case in cases if not kinds or case.kind in kinds]
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    click.echo(f"{'10⁶ instructions per token':<28}{'smc':>10}{'llama.cpp':>12}{'ratio':>8}")
    for level in [LEVELS[name] for name in levels or LEVELS]:
        for case in cases:
            row: dict[str, Any] = {"level": level.name, "case": case.name}
            if program:
                profile, facts = count_own(level, program, case)
                row["smc"] = functions(profile, program.executable, case)
            if gguf:
                profile = count_peer(level, gguf, case)
                row["llama.cpp"] = functions(profile, instructions_peer.build(level), case)
            rows.append(row)
            print_row(row, by_symbol)
    own_bytes = f"{facts['token_weight_bytes'] / 1e6:.2f}" if facts else ""
    peer_bytes = f"{gguf_bytes_per_token(gguf) / 1e6:.2f}" if gguf else ""
    click.echo(f"{'MB of weights per token':<28}{own_bytes:>10}{peer_bytes:>12}")
    if json_file:
        figures = {"model": model.name, "smc": quant, "llama_cpp": format, "rows": rows}
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if published:
        publish("instructions", [table(rows)])


if __name__ == "__main__":
    main()
