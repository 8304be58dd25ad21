"""Programs for other CPUs under qemu: which emulated CPU has which level, and compiled models that run there."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smc
from smc.codegen.cpu.link import link_driver as link_with_driver
from smc.ir import Module
from smc.runtime.interface import KV_DTYPES, TOKEN, WANT_ARGMAX, WANT_HIDDEN, WANT_LOGITS
from smc.targets import TARGETS, find_target

CPUS = {"neon": "cortex-a53", "dotprod": "cortex-a76", "i8mm": "max", "avx2": "Haswell"}
"""An emulated CPU that has a level's features, and (but for `max`) no more that matter."""

HEADER = struct.Struct("<32s3i")


def emulator(machine: str) -> str:
    """qemu for a machine ("aarch64", "x86_64"). Where it is missing the test is skipped; in CI it fails."""
    name = f"qemu-{machine}-static"
    if shutil.which(name) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed (Debian: qemu-user-static)")
    return name


def emulated(machine: str, cpu: str, program: str | Path, *arguments: object) -> list[str]:
    """The command that runs a static program on an emulated CPU."""
    return [emulator(machine), "-cpu", cpu, str(program), *map(str, arguments)]


def link_driver(module: Module, target: str, folder: Path) -> tuple[Path, Path]:
    """Compile a module for a target: driver.c linked with what program.so is made of, and the artifact."""
    machine, listings, program = find_target(target), folder / "listings", folder / "driver"
    smc.compile(module, target=target, out=folder / "model.smc", emit=listings, emit_kinds=("c", "obj"))
    assert machine.executable_target is not None
    link_with_driver(listings / "program.c", sorted(listings.glob("*.o")), machine, program)
    return program, folder / "model.smc"


def batch(tokens: Sequence[int], start: int = 0, sequence: int = 0) -> np.ndarray:
    """Tokens of a sequence from cache index `start` on, with the logits of all."""
    part = np.zeros(len(tokens), TOKEN)
    part["token"], part["sequence"], part["flags"] = tokens, sequence, WANT_LOGITS
    part["index"] = part["position"] = np.arange(start, start + len(tokens))
    return part


class EmulatedModel:
    """driver.c under an emulator; use it as a context manager. RuntimeError has its sentence where it fails."""

    def __init__(
        self,
        driver: tuple[Path, Path],
        target: str,
        cpu: str,
        *,
        threads: int = 1,
        kv_dtype: str = "f16",
        sequences: int = 1,
        level: str | None = None,
    ) -> None:
        machine = {"x86": "x86_64", "arm64": "aarch64"}[TARGETS[target].family]
        options = [threads, KV_DTYPES[kv_dtype], sequences, *([level] if level else [])]
        self._process = subprocess.Popen(
            emulated(machine, cpu, *driver, *options),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            name, self.vocab_size, self.hidden_size, self.threads = HEADER.unpack(self._read(HEADER.size))
        except RuntimeError:
            self.close()
            raise
        self.level = name.rstrip(b"\0").decode()

    def run(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run a batch of `TOKEN`: float32 [tokens that want logits, vocab_size], float32 [tokens that want hidden
        states, hidden_size], int32 [tokens that want the id of their largest logit]."""
        assert self._process.stdin is not None
        self._process.stdin.write(struct.pack("<i", len(tokens)) + tokens.tobytes())
        self._process.stdin.flush()
        shapes = ((WANT_LOGITS, self.vocab_size), (WANT_HIDDEN, self.hidden_size), (WANT_ARGMAX, 1))
        counts = [(int(np.count_nonzero(tokens["flags"] & flag)), width) for flag, width in shapes]
        data = [self._read(4 * count * width) for count, width in counts]
        logits, hidden = (np.frombuffer(data[i], np.float32).reshape(counts[i]) for i in range(2))
        return logits, hidden, np.frombuffer(data[2], np.int32)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Run a batch of `TOKEN` for its logits: float32 [tokens that want logits, vocab_size]."""
        return self.run(tokens)[0]

    def logits(self, tokens: Sequence[int], sequence: int = 0, sizes: Sequence[int] = ()) -> np.ndarray:
        """All logits of a new sequence, run in steps of these sizes (default: in one)."""
        rows, start = [], 0
        for size in sizes or [len(tokens)]:
            rows.append(self.step(batch(tokens[start : start + size], start, sequence)))
            start += size
        return np.concatenate(rows)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            assert self._process.stderr is not None
            raise RuntimeError(self._process.stderr.read().decode())
        return data

    def __enter__(self) -> EmulatedModel:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()
