"""The parts of a program before it is linked: a schedule with its places, and the machine code of its kernels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from smc.codegen.schedule.memory import MemoryPlan
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.weights import WeightTable
from smc.runtime.manifest import TuningFacts
from smc.targets import Target


@dataclass(frozen=True)
class Program:
    """What is computed, in which order, and where all values lie."""

    schedule: Schedule
    memory: MemoryPlan
    table: WeightTable


@dataclass(frozen=True)
class Tuned:
    """Which tuning records count. target: the user's name for it, "native" or another; records: a file in place of the
    user's records."""

    target: str
    records: Path | None = None


class Built(Protocol):
    """The machine code that a backend has built for all levels."""

    @property
    def count(self) -> int:
        """How many kernels, or programs, were built."""

    @property
    def files(self) -> list[Path]:
        """Objects that the program is linked with."""

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of the compilers, by package."""

    def tuning_facts(self) -> TuningFacts:
        """Which candidates tuning chose."""

    def write_listings(self, target: Target, folder: Path, kinds: Collection[str]) -> None:
        """Write the requested kinds of intermediate results."""
