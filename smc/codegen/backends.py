"""Backends: what runs plans on a kind of device. `Target.backend` names the one of a target."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from smc.codegen.cpu.backend import CpuBackend
from smc.codegen.kernels.specs import KernelSpec
from smc.codegen.objects import KernelObject
from smc.codegen.plan.plan import Plan
from smc.codegen.schedule.memory import MemoryPlan
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.schedule.traits import Traits
from smc.codegen.weights import WeightTable
from smc.targets import Target


class Backend(Protocol):
    """How a device runs a plan: its schedule, the kernels that needs, and the text of the program."""

    traits: Traits

    def schedule(self, plan: Plan, without: Collection[str] = ()) -> Schedule:
        """Phases of tasks; without: names of fast paths to leave out, InputError for one that there is not."""

    def kernels(self, schedule: Schedule) -> list[KernelSpec]:
        """The kernels to build for every level, each once, in a fixed order."""

    def program(
        self,
        schedule: Schedule,
        memory: MemoryPlan,
        table: WeightTable,
        weights_hash: str,
        objects: Sequence[KernelObject],
        target: Target,
    ) -> str:
        """The source of the program. objects: kernels of all levels; weights_hash: of the weights' bytes, in hex."""


BACKENDS: dict[str, Backend] = {"cpu": CpuBackend()}
"""By name."""


def find_backend(target: Target) -> Backend:
    """The backend of a target."""
    return BACKENDS[target.backend]
