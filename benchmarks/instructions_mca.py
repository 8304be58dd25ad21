"""How fast ARM cores can go through the inner loops, by llvm-mca: beside the counts of `benchmarks.instructions`.

    python -m benchmarks.instructions_mca [--level dotprod] [--case decode] [--ours-only] [--listing]

The loops are found where the counted instructions are: backward branches of the disassembled program, each loop with
the instructions that are in no loop inside it. LLVM's scheduling models of the cores then say how many cycles one turn
takes when every load hits the first cache, thus what the core could do if memory were infinitely fast: cycles per
token, tokens/s at 1 GHz, and for decode the weights in GB/s that it could take in at 1 GHz. Needs llvm-mca 16 or newer
(on Debian: apt-get install llvm-19); LLVM's own model of the Cortex-A76 is that of its server twin, the Neoverse N1.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import inputs, instructions_own, instructions_peer, peer, qemu
from benchmarks.instructions import DECODE_DEPTH, DECODE_TOKENS, Case, count_own, count_peer, gguf_bytes_per_token
from benchmarks.instructions_peer import LEVELS
from benchmarks.publish import Table, publish
from benchmarks.qemu import Profile

CORES = {
    "neon": {"Cortex-A53": "cortex-a53", "Cortex-A72": "cortex-a72", "Cortex-A76": "neoverse-n1"},
    "dotprod": {"Cortex-A55": "cortex-a55", "Cortex-A76": "neoverse-n1"},
    "i8mm": {"Cortex-A510": "cortex-a510", "Cortex-A710": "neoverse-n2"},
}
"""Cores that have just a level's instructions, and LLVM's names of their models."""

FEATURES = "+dotprod,+fullfp16,+i8mm"
TURNS = 100
LEAST_SHARE = 0.005
"""Loops with fewer of all instructions are left out."""


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly; target: where it may jump to."""

    address: int
    text: str
    target: int | None


@dataclass(frozen=True)
class Loop:
    """A loop of a function: the instructions of one turn without those of loops inside, and how often it turned."""

    function: str
    body: tuple[Instruction, ...]
    turns: int

    @property
    def instructions(self) -> int:
        """Executed in all turns together."""
        return self.turns * len(self.body)


def llvm_tool(name: str) -> str:
    """The newest of an LLVM tool: NAME or NAME-VERSION on the path."""
    for version in range(30, 15, -1):
        if found := shutil.which(f"{name}-{version}"):
            return found
    if found := shutil.which(name):
        version = int((re.search(r"version (\d+)", qemu.run([found, "--version"])) or ["", "0"])[1])
        if version >= 16:
            return found
    raise SystemExit(f"{name} 16 or newer is missing; on Debian: apt-get install llvm-19")


def disassemble(program: Path, function: str) -> list[Instruction]:
    """The instructions of a function, by its mangled name."""
    objdump = [llvm_tool("llvm-objdump"), "--no-show-raw-insn", f"--disassemble-symbols={function}", str(program)]
    return parse_disassembly(qemu.run(objdump))


def parse_disassembly(text: str) -> list[Instruction]:
    """What llvm-objdump prints without raw bytes; addresses in operands become the label of a loop's beginning."""
    instructions = []
    for address, instruction in re.findall(r"^ *([0-9a-f]+):\s+(\S.*)$", text, re.MULTILINE):
        code = " ".join(instruction.partition("//")[0].split())
        target = re.search(r"^(?:b|cbn?z|tbn?z)\b.* 0x([0-9a-f]+) <", code.replace("b.", "b "))
        code = re.sub(r"0x[0-9a-f]+ <[^>]*>", ".Lloop", code)
        instructions.append(Instruction(int(address, 16), code, int(target[1], 16) if target else None))
    return instructions


def find_loops(function: str, instructions: Sequence[Instruction], executions: Mapping[int, int]) -> list[Loop]:
    """The loops of a function that were run. Code that less than half of the turns went through belongs to none."""
    places = {instruction.address: place for place, instruction in enumerate(instructions)}
    spans = {}  # from the first to the last instruction; of several jumps to one place the last counts
    for place, instruction in enumerate(instructions):
        first = places.get(instruction.target) if instruction.target is not None else None
        if first is not None and first <= place and executions.get(instruction.address):
            spans[first] = place
    loops = []
    owned: set[int] = set()
    for first, last in sorted(spans.items(), key=lambda span: span[1] - span[0]):
        mine = [place for place in range(first, last + 1) if place not in owned]
        owned.update(mine)
        turns = executions.get(instructions[last].address, 0)
        body = tuple(
            instructions[place] for place in mine if 2 * executions.get(instructions[place].address, 0) >= turns
        )
        loops.append(Loop(function, body, turns))
    return loops


def hot_loops(profile: Profile, program: Path) -> list[Loop]:
    """All loops of a program with at least LEAST_SHARE of its instructions, those with most first."""
    executions = profile.executions()
    by_function = profile.by_symbol(qemu.Symbols.of(program, demangle=False))
    least = LEAST_SHARE * profile.instructions
    loops: list[Loop] = []
    for function, instructions in by_function.items():
        if instructions >= least:
            loops += find_loops(function, disassemble(program, function), executions)
    return sorted((loop for loop in loops if loop.instructions >= least), key=lambda loop: -loop.instructions)


def cycles_per_turn(loop: Loop, core: str) -> float:
    """Cycles of one turn in the long run, all loads from the first cache."""
    code = ".Lloop:\n" + "\n".join(instruction.text for instruction in loop.body) + "\n"

    def cycles(turns: int) -> int:
        command = [llvm_tool("llvm-mca"), "-mtriple=aarch64", f"-mcpu={core}", f"-mattr={FEATURES}"]
        done = subprocess.run(
            [*command, f"-iterations={turns}"], input=code, capture_output=True, text=True, check=False
        )
        match = re.search(r"^Total Cycles:\s+(\d+)", done.stdout, re.MULTILINE)
        if done.returncode or not match:
            raise SystemExit(f"llvm-mca can't read a loop of {loop.function}:\n{code}{done.stderr}")
        return int(match[1])

    return (cycles(2 * TURNS) - cycles(TURNS)) / TURNS


def print_side(
    title: str, profile: Profile, program: Path, case: Case, cores: Mapping[str, str], weight_bytes: int, listing: bool
) -> dict[str, float]:
    """Print the loops of one program; returns what they come to on every core, in cycles per token."""
    loops = hot_loops(profile, program)
    covered = sum(loop.instructions for loop in loops) / profile.instructions
    click.echo(
        f"  {title}: {covered:.0%} of {profile.instructions / case.tokens / 1e6:.2f}·10⁶ instructions in these loops"
    )
    header = "".join(f"{core:>13}" for core in cores)
    click.echo(f"    {'share':>6}{'turns/token':>14}{'instructions':>14}{header}   cycles per turn")
    totals = dict.fromkeys(cores, 0.0)
    for loop in loops:
        cells = ""
        for core, model in cores.items():
            cycles = cycles_per_turn(loop, model)
            totals[core] += cycles * loop.turns / case.tokens
            cells += f"{cycles:>13.1f}"
        share = loop.instructions / profile.instructions
        turns = loop.turns / case.tokens
        click.echo(f"    {share:>6.1%}{turns:>14.0f}{len(loop.body):>14}{cells}   {loop.function[:60]}")
        for instruction in loop.body if listing else ():
            click.echo(f"{'':24}{instruction.address:x}: {instruction.text}")
    rows = {"10⁶ cycles per token": (1e-6, 1), "tokens/s at 1 GHz": (1e9, -1)}
    if case.kind == "decode":
        rows["GB/s of weights at 1 GHz"] = (weight_bytes, -1)
    for name, (factor, power) in rows.items():
        click.echo(f"    {name:<34}" + "".join(f"{factor * total**power:>13.2f}" for total in totals.values()))
    return totals


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--quant", default="int4-plain", show_default=True, help="The recipe to compile with.")
@click.option("--peer", "format", default="Q4_0-pure", show_default=True, help="llama.cpp's format.")
@click.option("--level", "levels", multiple=True, type=click.Choice(list(LEVELS)), help="Some; may be repeated.")
@click.option("--case", "kinds", multiple=True, type=click.Choice(["decode", "prefill"]), help="One of the two.")
@click.option("--ours-only", is_flag=True, help="Without llama.cpp.")
@click.option("--listing", is_flag=True, help="Also the loops' instructions.")
@click.option("--publish", "published", is_flag=True, help="Write the table for docs/benchmarks.md.")
def main(**options: Any) -> None:
    """Count, find the loops and print them."""
    model = options["model"] or inputs.offgrid_model()
    type, _, pure = options["format"].partition("-")
    own = instructions_own.build(model, options["quant"])
    gguf = None if options["ours_only"] else peer.convert(model, type, pure=bool(pure))
    cases = [Case("decode", DECODE_TOKENS, DECODE_DEPTH), Case("prefill", 128)]
    lines: dict[str, list[str]] = {}
    for level in [LEVELS[name] for name in options["levels"] or LEVELS]:
        for case in [case for case in cases if case.kind in (options["kinds"] or ("decode", "prefill"))]:
            click.echo(f"{level.name}, {case.name}")
            profile, facts = count_own(level, own, case)
            shown = (case, CORES[level.name])
            sides = [
                print_side("smc", profile, own.executable, *shown, facts["token_weight_bytes"], options["listing"])
            ]
            if gguf:
                profile, program = count_peer(level, gguf, case), instructions_peer.build(level)
                sides.append(
                    print_side("llama.cpp", profile, program, *shown, gguf_bytes_per_token(gguf), options["listing"])
                )
            for core in CORES[level.name]:
                lines.setdefault(core, [core]).extend(f"{side[core] / 1e6:.1f}" for side in sides)
    if options["published"]:
        columns = ["core", *(text for case in cases for text in (f"{case.name}: smc", "llama.cpp"))]
        publish("instructions_mca", [Table("", columns, list(lines.values()))])


if __name__ == "__main__":
    main()
