"""The stand-in for a GPU: a driver of our own that runs a program's text on the CPU, under the unchanged engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import smc
from smc.codegen import cache
from smc.codegen.cpu.link import LINK_FLAGS
from smc.codegen.cpu.zig import zig_compile, zig_link
from smc.codegen.cuda import images
from smc.ir import Module
from smc.targets import GpuLevel

FOLDER = Path(__file__).parent
DRIVER = ("driver", "fibers", "races")
FLAGS = ("-O1", "-fPIC", "-mcpu=x86_64_v3", "-ffp-contract=off", "-fno-sanitize=undefined", "-g0", "-w")
PROGRAM_FLAGS = ("-x", "c++", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-DSMC_EMULATED")
RACES_FLAGS, FAST_FLAGS = ("-fsanitize=thread",), ("-O2",)
TARGET = "x86_64-linux-gnu.2.17"

LOGITS = """
import itertools, json, os, sys
import numpy as np
import smc
path, out, tokens, chunks, cases = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:6])
results = []
for settings, kv_dtype in cases:
    os.environ["SMC_EMULATOR"] = settings
    with smc.load(path, kv_dtype=kv_dtype) as model, model.new_sequence() as sequence:
        steps = [sequence.extend(tokens[i:j], logits="all") for i, j in itertools.pairwise(chunks)]
        results.append(np.concatenate(steps))
np.save(out, np.stack(results))
"""


def name_of(text: str, level: GpuLevel) -> bytes:
    """What the stand-in reads of machine code."""
    return re.findall(r"smc_program_\w{32}", text)[-1].encode()


def _compile(source: Path, out: Path, *flags: str) -> Path:
    """An object file, made once for the same text."""
    headers = [path.read_bytes() for path in sorted(FOLDER.glob("*.h"))]
    key = cache.key_of("stand-in", source.read_bytes(), headers, FLAGS, flags)
    kept = cache.fetch(key)
    if kept is None:
        zig_compile(TARGET, [*FLAGS, *flags, f"-I{FOLDER}", "-c", str(source), "-o", str(out)], out.parent)
        cache.keep(key, out.read_bytes())
    else:
        out.write_bytes(kept.data)
    return out


def _link(out: Path, *objects: Path) -> None:
    """A shared library of objects."""
    out.unlink(missing_ok=True)
    zig_link(TARGET, [*LINK_FLAGS["Linux"], *map(str, objects), "-o", str(out)], out.parent)


_WAIT = re.compile(r"\b(smc_sync|smc_sync_any|smc_sync_warp|smc_wait_copies|SMC_PHASE_END)\b *\(")
_MEANING = re.compile(r" *(SMC_DEVICE|/?\*|#define|template)")


@dataclass(frozen=True)
class StandIn:
    """An artifact for GPUs and what the stand-in needs to run it: its program for the CPU, and the driver."""

    folder: Path
    artifact: Path

    @classmethod
    def of(
        cls,
        module: Module,
        folder: Path,
        target: str = "cuda-sm_80",
        machine_code: bool = False,
        races: bool = True,
        **options: Any,
    ) -> StandIn:
        """Compile a module for a GPU, and its program for the stand-in. In place of machine code the artifact has its
        program's name, but for machine_code. races: look for them, which makes a program three times as slow."""
        folder.mkdir(exist_ok=True)
        listing = folder / "listing"
        with patch.object(images, "build_image", images.build_image if machine_code else name_of):
            smc.compile(module, target, folder / "model.smc", emit=listing, emit_kinds=("cu",), **options)
        text = (listing / "program.cu").read_text(encoding="utf-8")
        return cls(folder, folder / "model.smc").with_program(text, races=races)

    def with_program(self, text: str, name: str | None = None, races: bool = True) -> StandIn:
        """Let the stand-in run this text. name: that of the program which the artifact asks for, where the text is
        another one's."""
        name = name or re.findall(r"smc_program_\w{32}", text)[-1]
        source = self.folder / f"{name}.cu"
        text = text.replace("if (smc_phase_end(thread, &phase))", "if (SMC_PHASE_END(thread, &phase))")
        source.write_text(text, encoding="utf-8")
        flags = (*PROGRAM_FLAGS, *(RACES_FLAGS if races else FAST_FLAGS))
        hooks = _compile(FOLDER / "hooks.c", self.folder / "hooks.o")
        _link(self.folder / f"{name}.so", _compile(source, self.folder / f"{name}.o", *flags), hooks)
        if not (self.folder / "libcuda.so.1").exists():
            parts = [_compile(FOLDER / f"{part}.c", self.folder / f"{part}.o") for part in DRIVER]
            _link(self.folder / "libcuda.so.1", *parts)
        return self

    def waits(self) -> dict[int, str]:
        """By its line every wait of the program: of a block's threads, of a warp's, for copies, or the end of a phase
        ("end of FUNCTION, PHASE")."""
        found, function, phase = {}, "", ""
        for number, line in enumerate(self.text().splitlines(), 1):
            if match := re.match(r"static __device__ \w+ (\w+)\(struct smc_thread", line):
                function = match[1]
            if match := re.search(r"/\* (phase \d+: .*|gather .*|go on .*) \*/", line):
                phase = match[1]
            if _WAIT.search(line) and not _MEANING.match(line):
                found[number] = f"end of {function}, {phase}" if "SMC_PHASE_END" in line else line.strip()
        return found

    def text(self) -> str:
        """The program that runs."""
        [source] = self.folder.glob("smc_program_*.cu")
        return source.read_text(encoding="utf-8")

    def unnoticed(
        self,
        lines: Sequence[int],
        tokens: Sequence[int],
        steps: Sequence[tuple[int, str]],
        settings: str,
        kv_dtype: str,
    ) -> list[int]:
        """Of the waits in these lines, those without which the program gives the same logits and ids, and no two of
        its accesses race. steps: how many tokens each has, and what they want (without_waits.py)."""
        given = json.dumps([list(tokens), list(steps), list(lines)])
        out = str(self.folder / "unnoticed.npy")
        script = (FOLDER / "without_waits.py").read_text(encoding="utf-8")
        run = self.python(script, str(self.artifact), out, settings, kv_dtype, given)
        assert run.returncode == 0, run.stderr[-3000:]
        unnoticed: list[int] = json.loads(run.stdout)
        return unnoticed

    def python(
        self, script: str, *arguments: str, settings: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of Python in a process that finds the stand-in as its driver."""
        folder = str(self.folder)
        found = {"LD_LIBRARY_PATH": folder, "SMC_EMULATOR_PROGRAMS": folder, "SMC_EMULATOR": settings}
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, **found, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
        )

    def logits(
        self, tokens: Sequence[int], chunks: Sequence[int], cases: Sequence[tuple[str, str]], **options: Any
    ) -> np.ndarray:
        """Logits [cases, tokens, vocabulary] of tokens that come in chunks. cases: the stand-in's settings, the
        cache's dtype."""
        out = self.folder / "logits.npy"
        given = [json.dumps(value) for value in (list(tokens), list(chunks), list(cases))]
        run = self.python(LOGITS, str(self.artifact), str(out), *given, **options)
        assert run.returncode == 0, run.stderr[-3000:]
        logits: np.ndarray = np.load(out)
        return logits
