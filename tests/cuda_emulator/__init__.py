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

import numpy as np

import smc
from smc.codegen import cache
from smc.codegen.cpu.zig import zig_link
from smc.ir import Module

FOLDER = Path(__file__).parent
FLAGS = ("-O1", "-fPIC", "-shared", "-mcpu=x86_64_v3", "-ffp-contract=off", "-fno-sanitize=undefined", "-g0")
PROGRAM_FLAGS = ("-x", "c++", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-DSMC_EMULATED", f"-I{FOLDER}", "-w")
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


def _compile(source: Path, out: Path, *flags: str) -> Path:
    """A shared library of one file, made once for the same text."""
    if not out.exists():
        headers = [path.read_bytes() for path in sorted(FOLDER.glob("*.h"))]
        key = cache.key_of("stand-in", source.read_bytes(), headers, FLAGS, flags)
        kept = cache.fetch(key)
        if kept is None:
            zig_link(TARGET, [*FLAGS, *flags, str(source), "-o", str(out)], out.parent)
            cache.keep(key, out.read_bytes())
        else:
            out.write_bytes(kept.data)
    return out


@dataclass(frozen=True)
class StandIn:
    """An artifact for GPUs and what the stand-in needs to run it: its program for the CPU, and the driver."""

    folder: Path
    artifact: Path

    @classmethod
    def of(cls, module: Module, folder: Path, target: str = "cuda-sm_80", **options: Any) -> StandIn:
        """Compile a module for a GPU, and its program for the stand-in."""
        folder.mkdir(exist_ok=True)
        listing = folder / "listing"
        smc.compile(module, target, folder / "model.smc", emit=listing, emit_kinds=("cu",), **options)
        return cls(folder, folder / "model.smc").with_program((listing / "program.cu").read_text(encoding="utf-8"))

    def with_program(self, text: str, name: str | None = None) -> StandIn:
        """Let the stand-in run this text. name: that of the program which the artifact asks for, where the text is
        another one's."""
        name = name or re.findall(r"smc_program_\w{32}", text)[-1]
        source = self.folder / f"{name}.cu"
        source.write_text(text, encoding="utf-8")
        (self.folder / f"{name}.so").unlink(missing_ok=True)
        _compile(source, self.folder / f"{name}.so", *PROGRAM_FLAGS)
        _compile(FOLDER / "driver.c", self.folder / "libcuda.so.1")
        return self

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
            timeout=600,
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
