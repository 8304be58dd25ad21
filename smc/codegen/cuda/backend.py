"""The GPU as a backend: one kernel that stays for a whole step, and machine code of it for every level."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from smc.codegen.build import Program, Tuned
from smc.codegen.cuda.images import Images, build_images
from smc.codegen.cuda.program import device_text, host_text
from smc.codegen.plan.plan import Plan
from smc.codegen.schedule.argmax import argmax
from smc.codegen.schedule.fast_paths import apply_paths
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.schedule.tail import tail
from smc.codegen.schedule.traits import Traits
from smc.targets import Target

CUDA_TRAITS = Traits(
    step_tokens=(2048, 1024, 512, 256, 128, 64),
    arena_limit=256 << 20,
    chunk_tiles=8,  # one per warp
    private_tokens=2,
    chain_tokens=0,
    chain_floats=0,
    chain_groups=(),
)

FAST_PATHS = {"tail": tail, "argmax": argmax}
"""The fast paths that make sense on a GPU."""


class CudaBackend:
    """Phases that a resident kernel goes through."""

    traits = CUDA_TRAITS

    def schedule(self, plan: Plan, without: Collection[str] = ()) -> Schedule:
        """The straight schedule, then all fast paths but those left out."""
        return apply_paths(plan, self.traits, FAST_PATHS, without)

    def build(
        self, program: Program, target: Target, tuned: Tuned, folder: Path, report: Callable[[float], None]
    ) -> Images:
        """The device's program, compiled for every level."""
        text = device_text(program.schedule, program.memory, program.table)
        return build_images(text, target, folder, report)

    def program(self, program: Program, weights_hash: str, built: Images, target: Target) -> str:
        """C with the program's constants."""
        parts = (program.schedule, program.memory, program.table)
        return host_text(*parts, weights_hash, target, built.symbols)
