"""Facts about a program for GPUs that need no GPU: registers, spills, loads, room for blocks, bytes per token.

The assembler reports registers and spills; nvdisasm, if it is installed, shows the instructions.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smc.codegen.backends import find_backend
from smc.codegen.cuda.image import build_checked
from smc.codegen.cuda.kernels import encoding_name
from smc.codegen.cuda.program import device_text, launch_bytes
from smc.codegen.plan.planner import make_plan
from smc.codegen.schedule.memory import plan_memory
from smc.codegen.schedule.profile import profile_tasks
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.weights import WeightTable, place_weights
from smc.errors import InputError
from smc.ir import Encoding, Module, ceil_div
from smc.targets import find_target

MOST_REGISTERS, LEAST_BLOCKS, MOST_BYTES = 128, 2, 1.1
"""Bounds: registers per thread, blocks of threads per multiprocessor, bytes per token over the least possible ones."""

SHARED_KIB = {80: 164, 86: 100, 87: 164, 89: 100, 90: 228, 120: 100}
"""Shared memory of a multiprocessor ("CUDA C++ Programming Guide", compute capabilities)."""

REGISTERS, THREADS, RESERVED = 65536, 256, 1024
"""Of a multiprocessor; of a block of threads; bytes of shared memory that the system takes for each block."""

NO_DISASSEMBLER = "loads were not looked at, for nvdisasm is not here: pip install nvidia-cuda-nvdisasm"


@dataclass
class FunctionFacts:
    """A function of the machine code. weights: 16-byte loads through the read-only cache; others: all others there."""

    name: str
    symbol: str
    stack_bytes: int = 0
    spill_bytes: int = 0
    weights: int = 0
    others: int = 0


@dataclass
class LevelFacts:
    """A level's machine code. blocks: of threads, that a multiprocessor holds at once."""

    level: str
    registers: int
    blocks: int
    code_bytes: int
    functions: list[FunctionFacts] = field(default_factory=list)
    looked: bool = True

    @property
    def spill_bytes(self) -> int:
        """Of all functions."""
        return sum(function.spill_bytes for function in self.functions)


@dataclass
class StaticFacts:
    """Of a program. token_bytes: weights and activations that a step of one token moves; least_bytes: what it must:
    the multiplied weights, of experts those of the chosen ones, as their encodings have them, without padding. wide:
    encodings that have 16 bytes of a row in each tile, by their structs' names."""

    shared_bytes: int
    token_bytes: int
    least_bytes: int
    levels: list[LevelFacts]
    wide: frozenset[str]

    def faults(self) -> list[str]:
        """One sentence per fact that is out of bounds."""
        ratio = self.token_bytes / self.least_bytes
        found = [f"a token moves {ratio:.2f} times the bytes that it must"] if ratio > MOST_BYTES else []
        for level in self.levels:
            if level.registers > MOST_REGISTERS:
                found.append(f"{level.level}: a thread has {level.registers} registers")
            if level.blocks < LEAST_BLOCKS:
                found.append(f"{level.level}: a multiprocessor holds {level.blocks} block of threads")
            for function in level.functions:
                where = f"{level.level}, {function.name}"
                if function.spill_bytes:
                    found.append(f"{where}: {function.spill_bytes} bytes of registers go to memory")
                if function.others:
                    found.append(f"{where}: {function.others} loads of less than 16 bytes through the read-only cache")
                kernel, _, encoding = function.name.partition(" ")
                by_16 = kernel == "smc_multiply_integers" and encoding.split()[0] in self.wide
                if level.looked and by_16 and not function.weights:
                    found.append(f"{where}: weights are not loaded by 16 bytes")
        return found

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        levels = [
            {
                "level": level.level,
                "registers": level.registers,
                "spill_bytes": level.spill_bytes,
                "blocks_per_multiprocessor": level.blocks,
                "code_bytes": level.code_bytes,
                "loads_looked_at": level.looked,
                "functions": [vars(function) for function in level.functions],
            }
            for level in self.levels
        ]
        numbers = {name: getattr(self, name) for name in ("shared_bytes", "token_bytes", "least_bytes")}
        return {**numbers, "levels": levels, "faults": self.faults()}

    def table(self) -> str:
        """For people."""
        lines = ["level    registers  spilled  blocks per multiprocessor  code"]
        for level in self.levels:
            size = f"{level.code_bytes / 1024:.0f} KiB"
            lines.append(f"{level.level:8} {level.registers:9} {level.spill_bytes:8} {level.blocks:26}  {size}")
        ratio = self.token_bytes / self.least_bytes
        lines += [
            f"\nshared memory of a block of threads: {self.shared_bytes / 1024:.1f} KiB",
            f"bytes of a token: {self.token_bytes / 1e6:.2f} MB, {ratio:.3f} times those that it must move",
        ]
        if not all(level.looked for level in self.levels):
            lines.append(NO_DISASSEMBLER)
        return "\n".join([*lines, *(f"fault: {fault}" for fault in self.faults())])


def static_facts(module: Module, target: str = "cuda", without: Collection[str] = ()) -> StaticFacts:
    """Compile the module's program for every level with machine code; its weights are not read."""
    machine = find_target(target)
    if not machine.gpu_levels:
        raise InputError(f"--static is for targets with a GPU, such as cuda; {target} is none")
    schedule = find_backend(machine).schedule(make_plan(module), without)
    memory, table = plan_memory(schedule), place_weights(schedule.plan)
    text, shared = device_text(schedule, memory, table), launch_bytes(schedule, memory)
    levels = []
    for level in machine.gpu_levels:
        if not level.ptx:
            code, log = build_checked(text, level)
            levels.append(_level_facts(level.name, level.architecture, code, log, shared))
    wide = {encoding_name(p.encoding) for p in schedule.plan.multiplied() if _is_wide(p.encoding)}
    return StaticFacts(shared, *_token_bytes(schedule, table), levels, frozenset(wide))


def _is_wide(encoding: Encoding) -> bool:
    return not encoding.is_float and (encoding.is_base3 or encoding.bits >= 4)


def _token_bytes(schedule: Schedule, table: WeightTable) -> tuple[int, int]:
    """The bytes that a step of one token moves, and the least that it must move."""
    vectors = sum(parameter.shape[0] * 4 for parameter in schedule.plan.vectors())
    read = schedule.plan.module.chosen_by_token()
    matrices = sum(
        int(p.encoding.stored_bits(p.shape) * read.get(p.name, 1)) // 8 for p in schedule.plan.multiplied()
    )
    activations = sum(task.work.token_bytes for task in profile_tasks(schedule))
    return table.token_bytes + activations, matrices + vectors


# ---- machine code


def _level_facts(name: str, architecture: int, code: bytes, log: str, shared: int) -> LevelFacts:
    registers = max(map(int, re.findall(r"Used (\d+) registers", log)))
    functions = list(_functions(log))
    listing = _disassembled(code)
    if listing is not None:
        _count_loads(listing, {function.symbol: function for function in functions})
    by_registers = REGISTERS // (ceil_div(registers, 8) * 8 * THREADS)
    by_shared = SHARED_KIB[architecture] * 1024 // (shared + RESERVED)
    blocks = min(by_registers, by_shared)
    return LevelFacts(name, registers, blocks, len(code), functions, listing is not None)


def _short(symbol: str) -> str:
    """A function's name in the program's text, with the encoding and the number of tokens of a template's instance."""
    name, rest = symbol, symbol
    while match := re.search(r"(\d+)(?=(?:kernel|smc|E)_)", rest):
        rest = rest[match.end() :]
        found = rest[: int(match[1])]
        if found == "smc_run" and name == symbol:
            name = found
        elif found.startswith(("kernel_", "smc_")) and name in (symbol, "smc_run"):
            name, rest = found, rest[len(found) :]
        elif found.startswith("E_"):
            tokens = re.match(r"Li(\d+)E", rest[len(found) :])
            return f"{name} {found}{f' {tokens[1]}' if tokens else ''}"
    return name


def _functions(log: str) -> Iterator[FunctionFacts]:
    pattern = r"properties for (\S+)\s*\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill"
    for symbol, stack, stores, loads in re.findall(pattern, log):
        yield FunctionFacts(_short(symbol), symbol, int(stack), max(int(stores), int(loads)))


def _disassembler() -> str | None:
    """Where nvdisasm is: in the search path, or in a package of the name."""
    if found := shutil.which("nvdisasm"):
        return found
    for package in ("nvidia.cu13", "nvidia.cuda_nvdisasm"):
        spec = importlib.util.find_spec(package) if importlib.util.find_spec("nvidia") else None
        for place in (spec.submodule_search_locations or []) if spec else []:
            if (program := Path(place) / "bin" / "nvdisasm").exists():
                return str(program)
    return None


def _disassembled(code: bytes) -> str | None:
    program = _disassembler()
    if program is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [program, "-c", file.name]
        result = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    return result.stdout if result.returncode == 0 else None


def _count_loads(listing: str, functions: dict[str, FunctionFacts]) -> None:
    """Loads of global memory through the read-only cache, function by function.

    Constant tables of the program's text go through it, too: the frame's own, and codebooks. Their addresses come
    from the bank of constants (c[0x4]), and nothing ever writes them.
    """
    current: FunctionFacts | None = None
    table_registers: set[str] = set()
    for line in listing.splitlines():
        if match := re.search(r"\.type\s+(\S+),@function", line):
            current, table_registers = functions.get(match[1].rpartition("$")[2]), set()
        if match := re.search(r"LDC\.64 (R\d+), c\[0x4\]", line):
            table_registers.add(match[1])
        if current is None or not re.search(r"\bLDG\.\S*CONSTANT", line):
            continue
        if ".128." in line:
            current.weights += 1
        elif current.name != "smc_run" and not table_registers:
            current.others += 1
