"""The CPU as a backend: threads that go through phases together."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from smc.codegen.build import Program, Tuned
from smc.codegen.building import ProgramKernels, build_program_kernels
from smc.codegen.cpu.tuning import load_tuning
from smc.codegen.plan.plan import Plan
from smc.codegen.program.cpu import CpuDialect
from smc.codegen.program.kernel_table import program_kernels
from smc.codegen.program.program import host_program
from smc.codegen.schedule.fast_paths import make_schedule
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.schedule.traits import Traits
from smc.targets import Target

CPU_TRAITS = Traits(
    step_tokens=(512, 256, 128, 64, 32, 16),
    arena_limit=24 << 20,  # within the 50 MiB that an engine may use, and better for caches
    chunk_tiles=8,
    private_tokens=2,
    chain_tokens=96,  # whole tiles of every level, and for 32 rows as much as the first cache holds
    chain_floats=128 * 128,  # fewer tokens by 128 rows and more
    chain_groups=(32, 64, 128),
)


class CpuBackend:
    """Phases of kernels behind function pointers, one table per feature level."""

    traits = CPU_TRAITS

    def schedule(self, plan: Plan, without: Collection[str] = ()) -> Schedule:
        """All fast paths except those named."""
        return make_schedule(plan, self.traits, without)

    def build(
        self, program: Program, target: Target, tuned: Tuned, folder: Path, report: Callable[[float], None]
    ) -> ProgramKernels:
        """The kernels that the schedule calls, each once; they are the same for all levels."""
        specs, plan = program_kernels(program.schedule), program.schedule.plan
        return build_program_kernels(specs, plan, target, load_tuning(tuned.target, tuned.records), folder, report)

    def program(self, program: Program, weights_hash: str, built: ProgramKernels, target: Target) -> str:
        """C that the engine runs."""
        parts = (program.schedule, program.memory, program.table)
        return host_program(*parts, weights_hash, built.objects, target, CpuDialect())
