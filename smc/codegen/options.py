"""The options of a compilation, beside the module and the file to write."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from smc.runtime.manifest import QualityFacts
from smc.structured.functions import Function


@dataclass(frozen=True)
class CompileOptions:
    """How a module becomes an artifact.

    target: "native" for this CPU, or a name of `smc.targets.TARGETS`.
    standalone: make the file an executable as well, which runs without anything else (docs/artifact.md).
    functions: those that the executable's answers call (docs/devices.md); none: its answers are text.
    emit: a folder for what lies between, of the kinds `emit_kinds`: "plan" (kernels on buffers), "schedule" (phases of
        tasks), "c" (host program), "tir" (kernels), "asm" and "obj" (their machine code).
    records: a file of tuning records (docs/tuning.md); without it those that `smc tune` wrote count.
    quality: what quantizing cost, which goes into the artifact; None if it was not measured.
    without: fast paths to leave out, which changes speed and no result (docs/extending.md): for developers.
    """

    target: str = "native"
    standalone: bool = False
    functions: Sequence[Function] = ()
    emit: Path | None = None
    emit_kinds: Sequence[str] = ()
    records: Path | None = None
    without: Collection[str] = ()
    quality: QualityFacts | None = None
