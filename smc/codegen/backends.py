"""Backends: each makes programs for one kind of device. `Target.backend` names the one of a target."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from smc.codegen.build import Built, Program, Tuned
from smc.codegen.cpu.backend import CpuBackend
from smc.codegen.cuda.backend import CudaBackend
from smc.codegen.plan.plan import Plan
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.schedule.traits import Traits
from smc.targets import Target


class Backend(Protocol):
    """How a device runs a plan: the schedule, its machine code, and the text of the program."""

    traits: Traits

    def schedule(self, plan: Plan, without: Collection[str] = ()) -> Schedule:
        """Phases of tasks; without: names of fast paths to leave out, InputError for an unknown one."""

    def build(
        self, program: Program, target: Target, tuned: Tuned, folder: Path, report: Callable[[float], None]
    ) -> Built:
        """The machine code for every level, files in `folder`. report: called with the fraction that is done."""

    def program(self, program: Program, weights_hash: str, built: Any, target: Target) -> str:
        """The C source that is linked with the engine and the built objects. weights_hash: that of the weights, in
        hex."""


BACKENDS: dict[str, Backend] = {"cpu": CpuBackend(), "cuda": CudaBackend()}
"""By name."""


def find_backend(target: Target) -> Backend:
    """The backend of a target."""
    return BACKENDS[target.backend]
