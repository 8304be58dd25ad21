"""The pipeline of a compilation, on one page: from a module to an artifact, step by step.

`emit` writes the results between the steps (dumps.py); `without` leaves out fast paths of the schedule.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from smc.codegen.assembly import Parcel, bits_per_weight, write_artifact
from smc.codegen.backends import find_backend
from smc.codegen.build import Program, Tuned
from smc.codegen.cache import cache_trouble
from smc.codegen.dumps import Dumps
from smc.codegen.options import CompileOptions
from smc.codegen.output import output_file, output_folder, work_folder
from smc.codegen.plan.planner import make_plan
from smc.codegen.proof import Expected
from smc.codegen.schedule.memory import plan_memory
from smc.codegen.stages import Stages
from smc.codegen.standalone import standalone_parts
from smc.codegen.texts import settle_texts
from smc.codegen.weights import place_weights
from smc.errors import Notice
from smc.ir import Module, verify
from smc.runtime.manifest import ProofFacts
from smc.targets import find_target

DEFAULTS = CompileOptions()


@dataclass
class CompileReport:
    """Facts about the artifact: sizes in bytes, seconds per stage.

    executable_bytes: those of the program in front of the artifact, 0 without one. no_chat: why it can't chat although
    the model has a chat template, as the end of a sentence. proof: None if none was requested.
    """

    target: str
    levels: list[str]
    bytes: int
    program_bytes: int
    weight_bytes: int
    bits_per_weight: float
    kernels: int
    executable_bytes: int = 0
    no_chat: str | None = None
    proof: ProofFacts | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)


def compile_module(
    module: Module,
    out: str | Path = "model.smc",
    options: CompileOptions = DEFAULTS,
    progress: Callable[[str, float], None] | None = None,
    expected: Expected | None = None,
) -> CompileReport:
    """Compile a module to the artifact `out`, which gets its name when it is complete.

    progress: called with (stage, fraction done).
    expected: the logits that the program of this module must compute, else WrongProgramError. Programs for GPUs are not
    run.
    Raises InputError for unknown targets and fast paths, for ops or encodings without a kernel, and for an `out` that
    can't be written.
    """
    machine, file = find_target(options.target), _checked(module, out, options)
    expected = None if machine.gpu_levels else expected
    backend, stages = find_backend(machine), Stages(progress)
    dumps = Dumps(options.emit, options.emit_kinds)
    verify(module)
    module = replace(module, facts=settle_texts(module.facts))
    with stages("plan"):
        plan = make_plan(module)  # kernels on buffers, in dependency order
        dumps.plan(plan)
        schedule = backend.schedule(plan, options.without)  # phases of tasks, by fast paths
        dumps.schedule(schedule)
        memory = plan_memory(schedule)  # where buffers lie
        table = place_weights(plan)  # where parameters lie
        program = Program(schedule, memory, table)
        parts = standalone_parts(module.facts, machine, options.functions) if options.standalone else None
    with _errors_name(file), work_folder(file) as folder:
        with stages("build kernels") as report:
            tuned = Tuned(options.target, options.records)
            built = backend.build(program, machine, tuned, folder, report)  # machine code
        dumps.built(built, machine)
        parcel = Parcel(backend, program, built, machine, options.quality)
        artifact = folder / "artifact"
        written = write_artifact(artifact, parcel, parts, stages, expected)  # weights, text, link, manifest
        dumps.program(parcel.text(written.weights_hash))
        size = artifact.stat().st_size
        os.replace(artifact, file)
    return CompileReport(
        machine.name,
        [level.name for level in machine.levels],
        size,
        written.program_bytes,
        table.total_bytes,
        bits_per_weight(module, table),
        built.count,
        written.executable_bytes,
        parts.no_chat if parts else None,
        written.proof,
        stages.seconds,
    )


def _checked(module: Module, out: str | Path, options: CompileOptions) -> Path:
    """The file to write; InputError before the work if it can't be written, and a notice if there is no cache."""
    inputs = [path for path in (module.facts.source, options.records) if path is not None]
    file = output_file(Path(out), inputs)
    if options.emit is not None:
        output_folder(options.emit)
    if trouble := cache_trouble():
        warnings.warn(f"no cache for kernels: {trouble}; set SMC_CACHE to another folder", Notice, stacklevel=3)
    return file


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Add this file's name to errors of writing, which do not say which file it was."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
