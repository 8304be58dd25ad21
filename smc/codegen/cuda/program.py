"""The two texts of a program for GPUs: CUDA C++ for the device, which does steps; C for the host, constants alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from smc.codegen.c_literals import c_comment
from smc.codegen.cpu.link import engine_folder
from smc.codegen.cuda.kernels import choice_function, kernel_function, kernel_structs, shared_bytes
from smc.codegen.kernels.abi import PAGE_TOKENS, TILE_TOKENS
from smc.codegen.kernels.specs import RouteKernel
from smc.codegen.plan.plan import KV_DTYPES
from smc.codegen.program.cuda import CudaDialect
from smc.codegen.program.kernel_table import CHOSEN_BY_MATRIX, members, program_kernels
from smc.codegen.program.program import engine_agreement, write_functions
from smc.codegen.program.tables import engine_tables, program_constants
from smc.codegen.program.writer import CWriter
from smc.codegen.schedule.memory import MemoryPlan
from smc.codegen.schedule.profile import profile_tasks
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.weights import WeightTable
from smc.ir import ceil_div
from smc.targets import Target

DEVICE_FILES = (
    *("math.cuh", "phases.cuh", "rows.cuh", "matrix.cuh", "linear.cuh", "tensor.cuh", "attention.cuh"),
    "prompts.cuh",
)
"""Files of device/, each behind those that it uses; base.cuh and the engine's step.h come first, experts.cuh last, in
programs of mixtures of experts."""


def device_folder() -> Path:
    """Where the CUDA C++ of all programs is."""
    return Path(__file__).parent / "device"


def device_text(schedule: Schedule, memory: MemoryPlan, table: WeightTable) -> str:
    """The whole source of the device's program: it includes nothing, except for the tests' stand-in."""
    specs = program_kernels(schedule)
    out = CWriter()
    out.write(f"/* {c_comment(schedule.plan.module.facts.name)}: the device's program, generated. */")
    files = [*DEVICE_FILES, *(["experts.cuh"] if any(isinstance(spec, RouteKernel) for spec in specs) else [])]
    step = engine_folder() / "step.h"
    for path in (device_folder() / "base.cuh", step, *(device_folder() / name for name in files)):
        out.write(*path.read_text(encoding="utf-8").splitlines(), "")
    scratch = _padded(memory.scratch_bytes)
    out.write(f"#define SMC_SCRATCH {scratch} /* bytes of shared memory that the program keeps for itself */", "")
    out.write(*kernel_structs(specs))
    for spec in specs:
        out.write(*kernel_function(spec))
    for name, choices in members(schedule).items():
        if len(choices) > 1 or name in CHOSEN_BY_MATRIX:
            out.write(*choice_function(name, choices))
    write_functions(out, schedule, memory, table, CudaDialect())
    out.write(*ENTRY.splitlines())
    text = out.text()
    name = f"smc_program_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    return f"{text}\n/* By which this text's machine code is known. */\nSMC_MARK uint32_t {name} = 1;\n"


ENTRY = """
/* Does the phases first … last - 1 of a step, in a resident launch all of them; with last = 0 they are counted. */
SMC_ENTRY smc_run(const struct smc_step *S, struct smc_control *control, uint32_t first, uint32_t last) {
  struct smc_thread thread = {smc_block_index(), smc_block_count(), smc_shared_memory(), control, 0, first, last, 0};
  if (first == 0 && last > 0) smc_clear_argmaxes(S, thread.index);
  run(&thread, S);
  if (thread.index == 0 && smc_lane_of_block() == 0) control->phases = thread.phase, control->tasks = thread.tasks;
}
"""


def _padded(size: int) -> int:
    return ceil_div(size, 128) * 128


def launch_bytes(schedule: Schedule, memory: MemoryPlan) -> int:
    """Shared memory of a block of threads."""
    return _padded(memory.scratch_bytes) + _padded(shared_bytes(program_kernels(schedule)))


def host_text(
    schedule: Schedule,
    memory: MemoryPlan,
    table: WeightTable,
    weights_hash: str,
    target: Target,
    images: Sequence[str],
) -> str:
    """C for the engine: the program's constants. images: by level, the symbol of its machine code."""
    out = CWriter()
    out.write(f"/* {c_comment(schedule.plan.module.facts.name)}: the host's program, generated. */")
    out.write(*engine_agreement(), '#include "cuda/device_program.h"', "")
    shared = launch_bytes(schedule, memory)
    for level, symbol in zip(target.gpu_levels, images, strict=True):
        out.write(f"extern const uint8_t {symbol}[];", f"extern const uint64_t {symbol}_bytes;")
        facts = f"{symbol}, &{symbol}_bytes, {level.architecture}, {int(level.ptx)}, {shared}"
        out.write(f"static const struct smc_image image_{level.name} = {{{facts}}};", "")
    tasks = profile_tasks(schedule)
    out.write(*engine_tables(schedule.plan, target, tasks, "image_"))
    out.write(*program_constants(schedule, memory, table, weights_hash, target, tasks, "0"))
    return out.text()


assert (PAGE_TOKENS, TILE_TOKENS, KV_DTYPES) == (64, 8, ("f16", "f32", "i8")), "device/attention.cuh counts on it"
