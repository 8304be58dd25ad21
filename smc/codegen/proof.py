"""The proof of an artifact: the compiled program runs a few tokens, and its logits are compared with the reference's.

The caller passes the reference (`Expected`): it computes while weights are packed, so that none is loaded twice and
none stays in memory. The program runs in a process of its own, because it may crash, with the weights mapped from the
file. A program for another kind of machine runs under an emulator, if one is installed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from smc.codegen.workers import WorkerDiedError, run_in_workers
from smc.errors import InputError
from smc.ir import EncodedTensor
from smc.runtime.interface import TOKEN, WANT_LOGITS
from smc.runtime.manifest import ProofFacts
from smc.targets import Target

MOST_EMULATED = 500_000_000
"""Weights of the largest model that is run under an emulator, which takes about ten times as long."""

CLOSE, ROUNDED_CLOSE = 2e-3, 0.1
"""The largest difference to a reference that adds in another order, relative to the norm of all logits: with float
inputs only, and with rounded inputs, where an ulp may change a code (docs/numerics.md)."""

EMULATORS = {"aarch64": ("qemu-aarch64-static", "qemu-aarch64"), "x86_64": ("qemu-x86_64-static", "qemu-x86_64")}
"""Emulators, by the machine that they emulate, with all its features."""


NOTHING = "nothing was written (--no-verify writes the file all the same)"


class Expected(Protocol):
    """The expected logits of a few tokens of one text, from the reference.

    tokens: from position 0. context: tokens of the KV cache that the program is given. rows: the ids whose logits it
    gives, int64. exact: equal bits are expected.
    rounds: some matrix rounds its inputs.
    """

    tokens: list[int]
    context: int
    rows: np.ndarray
    exact: bool
    rounds: bool

    def take(self, name: str, tensor: EncodedTensor) -> None:
        """Take a loaded matrix of the model. Any thread may call this."""

    def advance(self) -> None:
        """Compute as far as the matrices that were taken allow."""

    def logits(self) -> np.ndarray:
        """float32 [tokens, rows], when all matrices were taken."""


class WrongProgramError(Exception):
    """The compiled program computes something else than the reference, or crashes: a bug in smc."""


def prove(
    artifact: Path,
    program: Path,
    target: Target,
    weights: int,
    expected: Expected,
    link: Callable[[Path], None],
) -> ProofFacts:
    """Run the artifact (which may lack its manifest) and compare; WrongProgramError if the logits differ.

    program: program.so. weights: how many the model has. link: makes a static executable of the driver at a path.
    If the program can't run here, the result says why.
    """
    out = artifact.with_name("logits")
    if (platform.machine(), platform.system()) == (target.machine, target.system):
        level, reason = _run_here(artifact, program, expected, out)
        emulator = None
    else:
        emulator = _emulator(target)
        if emulator is None:
            return ProofFacts(False, "the program is for another machine, and no emulator is installed")
        if weights > MOST_EMULATED:
            return ProofFacts(False, "the program is for another machine, and too large for an emulator")
        level, reason = _run_emulated(emulator, artifact, expected, out, link)
    if reason is not None:
        if out.exists() and np.isfinite(expected.logits()).all():
            raise WrongProgramError(f"the compiled program fails where the reference does not: {reason}; {NOTHING}")
        return ProofFacts(False, reason)
    logits = np.fromfile(out, np.float32).reshape(len(expected.tokens), -1)[:, expected.rows]
    difference = _difference(logits, expected)
    return ProofFacts(True, None, level, emulator and Path(emulator).name, len(expected.tokens), difference)


def _difference(logits: np.ndarray, expected: Expected) -> float:
    """The distance of the program's logits from those expected, relative to their norm; WrongProgramError if it is too
    large."""
    wanted = expected.logits()
    if np.array_equal(logits, wanted):
        return 0.0
    norm = float(np.linalg.norm(wanted)) or 1.0
    difference = float(np.linalg.norm(logits - wanted)) / norm
    if expected.exact or not difference <= (ROUNDED_CLOSE if expected.rounds else CLOSE):
        worst = [float(np.linalg.norm(a - b)) / norm for a, b in zip(logits, wanted, strict=True)]
        raise WrongProgramError(
            f"the compiled program computes other logits than the reference: they differ by {difference:.3g} of their "
            f"norm, token by token {', '.join(f'{value:.2g}' for value in worst)}; "
            f"{NOTHING}"
        )
    return difference


# ---- on this machine


def _run_here(artifact: Path, program: Path, expected: Expected, out: Path) -> tuple[str | None, str | None]:
    """Write the logits [tokens, vocabulary] to `out`; the level that ran, or why none can, or why it failed (`out` is
    there then, too)."""
    said = out.with_suffix(".level")
    try:
        job = (str(artifact), str(program), expected.tokens, expected.context, str(out), str(said))
        for _ in run_in_workers(run_tokens, [job], 1):
            pass
    except InputError as error:
        return None, str(error)
    except WorkerDiedError as error:
        if error.refusal is not None:
            raise InputError(f"the proof of the program failed: {error.refusal}") from None
        raise WrongProgramError(f"the compiled program crashed in its proof ({error}); {NOTHING}") from None
    return said.read_text(), None


def run_tokens(artifact: str, program: str, tokens: list[int], context: int, out: str, said: str) -> None:
    """In a worker: all tokens but one at once, then the last one; logits of all to the file `out`, raw float32."""
    from smc.runtime.binding import Engine

    os.environ["SMC_HUGE_PAGES"] = "0"  # the weights stay in the file: this process needs no memory for them
    with Engine(artifact, Path(program).read_bytes(), context_length=context) as engine, open(out, "wb") as file:
        facts = engine.facts
        for begin, end in ((0, len(tokens) - 1), (len(tokens) - 1, len(tokens))):
            if begin == 0:
                engine.sequence_create()
            logits = np.empty((end - begin, facts.logits_stride), np.float32)
            engine.step(_batch(tokens, begin, end), logits=logits)
            file.write(np.ascontiguousarray(logits[:, : facts.vocab_size]).tobytes())
        Path(said).write_text(facts.level.decode())


def _batch(tokens: Sequence[int], begin: int, end: int) -> np.ndarray:
    batch = np.zeros(end - begin, TOKEN)
    batch["token"], batch["flags"] = tokens[begin:end], WANT_LOGITS
    batch["index"] = batch["position"] = np.arange(begin, end)
    return batch


# ---- on an emulated one


def _emulator(target: Target) -> str | None:
    """The program that emulates a target's CPU."""
    if target.executable_target is None or platform.system() != "Linux":
        return None
    return next(filter(None, map(shutil.which, EMULATORS.get(target.machine, ()))), None)


def _run_emulated(
    emulator: str, artifact: Path, expected: Expected, out: Path, link: Callable[[Path], None]
) -> tuple[str | None, str | None]:
    """As `_run_here`, by the driver (smc/runtime/driver) on a CPU with all features that the emulator has."""
    driver = artifact.with_name("driver")
    link(driver)
    tokens = expected.tokens
    steps = (_batch(tokens, 0, len(tokens) - 1), _batch(tokens, len(tokens) - 1, len(tokens)))
    data = b"".join(np.int32(len(step)).tobytes() + step.tobytes() for step in steps)
    command = [emulator, "-cpu", "max", str(driver), str(artifact), "1", "0", "1", "", str(expected.context)]
    ended = subprocess.run(command, input=data, capture_output=True, env={**os.environ, "SMC_HUGE_PAGES": "0"})
    header = 32 + 3 * 4
    if len(ended.stdout) >= header:
        out.write_bytes(ended.stdout[header:])
    if ended.returncode == 2:
        return None, ended.stderr.decode("utf-8", "replace").strip() or "the emulated program failed"
    if ended.returncode:
        raise WrongProgramError(f"the compiled program crashed under {emulator} with status {ended.returncode}")
    return ended.stdout[:32].rstrip(b"\0").decode(), None
