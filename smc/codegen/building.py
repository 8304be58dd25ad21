"""The kernels of a program: for each the candidate that tuning chooses, and its object for every level."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from smc.codegen.cpu.tuning import Choice, Tuning, records_hash
from smc.codegen.cpu.tuning_kit import plan_matrices, workloads
from smc.codegen.kernels.specs import KernelSpec
from smc.codegen.objects import TVM_PINS, KernelObject, build_kernels, write_listings
from smc.codegen.plan.plan import Plan
from smc.runtime.manifest import TuningFacts
from smc.targets import Target


@dataclass(frozen=True)
class ProgramKernels:
    """A program's kernels of all levels, in one order: the choice for each, the built objects, and the same objects
    under the names that the host program uses."""

    choices: list[Choice]
    built: list[KernelObject]
    objects: list[KernelObject]
    versions: Mapping[str, str] = field(default_factory=lambda: TVM_PINS)

    @property
    def count(self) -> int:
        """Kernels, of all levels."""
        return len(self.objects)

    @property
    def files(self) -> list[Path]:
        """Their objects."""
        return [o.path for o in self.objects]

    def write_listings(self, target: Target, folder: Path, kinds: Collection[str]) -> None:
        """Every kernel's TIR (NAME.py), assembly (NAME.s) and object (NAME.o)."""
        write_listings(self.built, target, folder, tuple(kinds))

    def tuning_facts(self) -> TuningFacts:
        """Which candidates records chose, by the kernel's symbol, and the hash of these records."""
        pairs = zip(self.choices, self.built, strict=True)
        names = {o.symbol: choice.name for choice, o in pairs if choice.records}
        return TuningFacts(names, records_hash(self.choices))


def build_program_kernels(
    specs: Sequence[KernelSpec],
    plan: Plan,
    target: Target,
    tuning: Tuning,
    folder: Path,
    report: Callable[[float], None],
) -> ProgramKernels:
    """Choose and build, objects in `folder`. report: called with the fraction that is done."""
    wanted = [(spec, level) for level in target.cpu_levels for spec in specs]
    work = workloads(plan_matrices(plan))
    choices = [tuning.choose(spec, level, work) for spec, level in wanted]
    built = build_kernels(
        [(choice.spec, level) for choice, (_, level) in zip(choices, wanted, strict=True)], target, folder, report
    )
    # The host program names kernels by what they compute; the candidate for it differs between levels.
    objects = [replace(o, spec=spec) for o, (spec, _) in zip(built, wanted, strict=True)]
    return ProgramKernels(choices, built, objects)
