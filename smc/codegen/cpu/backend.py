"""The CPU as a backend: threads that go through phases together."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from smc.codegen.kernels.specs import KernelSpec
from smc.codegen.objects import KernelObject
from smc.codegen.plan.plan import Plan
from smc.codegen.program.cpu import CpuDialect
from smc.codegen.program.kernel_table import program_kernels
from smc.codegen.program.program import host_program
from smc.codegen.schedule.fast_paths import make_schedule
from smc.codegen.schedule.memory import MemoryPlan
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.schedule.traits import Traits
from smc.codegen.weights import WeightTable
from smc.targets import Target

CPU_TRAITS = Traits(
    step_tokens=(512, 256, 128, 64, 32, 16),
    arena_limit=24 << 20,  # inside the 50 MiB that an engine may use, and better in cache
    chunk_tiles=8,
    private_tokens=2,
    chain_tokens=96,  # whole tiles of every level, and for 32 rows what the first cache has room for
    chain_floats=128 * 128,  # fewer tokens by 128 rows and more
    chain_groups=(32, 64, 128),
)


class CpuBackend:
    """Phases of kernels behind function pointers, one table per feature level."""

    traits = CPU_TRAITS

    def schedule(self, plan: Plan, without: Collection[str] = ()) -> Schedule:
        """All fast paths but some."""
        return make_schedule(plan, self.traits, without)

    def kernels(self, schedule: Schedule) -> list[KernelSpec]:
        """Every kernel that the schedule calls, once; all levels have the same."""
        return program_kernels(schedule)

    def program(
        self,
        schedule: Schedule,
        memory: MemoryPlan,
        table: WeightTable,
        weights_hash: str,
        objects: Sequence[KernelObject],
        target: Target,
    ) -> str:
        """C that the engine runs."""
        return host_program(schedule, memory, table, weights_hash, objects, target, CpuDialect())
