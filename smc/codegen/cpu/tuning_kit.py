"""The tuner: a static program that measures kernels' candidates on the machine where it runs (smc/runtime/tuner).

`smc tune` runs it here; as a kit it runs on a device that has no Python.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from smc.codegen.cpu.link import compile_executable, engine_folder
from smc.codegen.cpu.tiles import candidates
from smc.codegen.cpu.tuning import Workload
from smc.codegen.kernels.groups import sum_group
from smc.codegen.kernels.layout import MatrixLayout
from smc.codegen.kernels.specs import LinearKernel
from smc.codegen.objects import KernelObject, build_kernels
from smc.codegen.output import output_file, work_folder
from smc.codegen.packing import check_packable
from smc.codegen.plan.plan import Plan
from smc.codegen.plan.work import padded_width
from smc.errors import InputError
from smc.ir import F16, Encoding, integer, parse_encoding, stack_shape
from smc.runtime.artifact import read_manifest
from smc.targets import CpuLevel, Target

TOKENS = (21, 128)
"""What kernels are measured with: a short prompt, which leaves tokens over for every tile, and a long one.

One token, a step of decoding, goes through code that is the same for all tiles: it reads a block of rows as one stream.
"""

MAX_ROWS = 512
"""Blocks of rows are independent: more of them take longer and show nothing new."""

STANDARD_ENCODINGS = (
    integer(4, activation_group=128),
    integer(4),
    integer(4, symmetric=False),
    integer(5, group=64, symmetric=False),
    integer(6),
    integer(8),
    Encoding.of(bits=8, activation="none"),
    F16,
)
"""Those of the recipes."""

STANDARD_SHAPES = ((1536, 576), (576, 1536), (2048, 2048), (2048, 5632))
"""[rows, columns] in SmolLM2-135M and in TinyLlama-1.1B."""

STANDARD_WEIGHT_BYTES = 256 << 20

Matrix = tuple[Encoding, int, int]
"""Encoding, rows and columns."""

Workloads = dict[LinearKernel, dict[Workload, float]]
"""What is measured of every kernel, with its share of the work."""


def artifact_matrices(path: Path) -> list[Matrix]:
    """The matrices of an artifact, from its manifest; also an embedding of its own, though nothing multiplies it.

    Raises InputError if the manifest does not list them.
    """
    manifest, matrices = read_manifest(path), list[Matrix]()
    for name, text in manifest.encodings.items():
        shape = manifest.shapes.get(name, ())
        if len(shape) == 2:
            encoding = parse_encoding(text)
            check_packable(encoding)
            matrices.append((encoding, *stack_shape(shape)[1:]))
    if not matrices:
        raise InputError(f"the manifest of {path} does not say which matrices it has: tune the model instead")
    return matrices


def plan_matrices(plan: Plan) -> list[Matrix]:
    """The matrices that a token multiplies."""
    return [(p.encoding, *stack_shape(p.shape)[1:]) for p in plan.multiplied()]


def standard_matrices() -> list[Matrix]:
    """Matrices as most models have them, in the encodings of the recipes."""
    return [(encoding, *shape) for encoding in STANDARD_ENCODINGS for shape in STANDARD_SHAPES]


def weight_bytes(matrices: Iterable[Matrix]) -> int:
    """Bytes that one token multiplies."""
    return sum(MatrixLayout(*matrix).total_bytes for matrix in matrices)


def workloads(matrices: Iterable[Matrix]) -> Workloads:
    """Kernels with what they do: matrices with the same number of columns are one shape class.

    They weigh what they multiply: a long prompt more than a short one.
    """
    rows: dict[tuple[LinearKernel, int], list[int]] = {}
    for encoding, count, columns in matrices:
        check_packable(encoding)
        rows.setdefault((LinearKernel(encoding), columns), []).append(count)
    found: Workloads = {}
    for (kernel, columns), counts in rows.items():
        for tokens in TOKENS:
            shape = (("rows", min(max(counts), MAX_ROWS)), ("columns", columns), ("tokens", tokens))
            found.setdefault(kernel, {})[shape] = float(sum(counts) * columns * tokens)
    return found


def tuner_folder() -> Path:
    """Where the tuner's C files are: package data of the runtime."""
    return Path(__file__).parents[2] / "runtime" / "tuner"


def build_kit(
    measured: Workloads,
    target: Target,
    out: Path,
    *,
    levels: Sequence[CpuLevel] | None = None,
    weights: int = STANDARD_WEIGHT_BYTES,
    progress: Callable[[str, float], None] = lambda stage, fraction: None,
) -> int:
    """Write the executable `out` for a target, which appears only when it is complete. Returns its measurements.

    levels: those to measure, by default all of the target. weights: bytes that lie between two uses of a matrix.
    progress: called with (stage, fraction done). InputError for a target without executables.
    """
    if target.executable_target is None:
        raise InputError(f"there is no tuner for {target.name}: it is a static Linux program")
    wanted = target.cpu_levels if levels is None else levels
    spaces = {(kernel, level): candidates(kernel, level) for level in wanted for kernel in measured}
    jobs = [(spec, level) for (_, level), specs in spaces.items() for spec in specs.values()]
    out = output_file(out)
    with work_folder(out) as folder:
        objects = build_kernels(jobs, target, folder, lambda fraction: progress("build candidates", fraction))
        progress("link", 0)
        source, partial = folder / "table.c", folder / "kit"
        source.write_text(_table(measured, spaces, objects, weights), encoding="utf-8")
        sources = [*sorted(tuner_folder().glob("*.c")), engine_folder() / "cpu.c", source]
        kernels = [o.path for o in objects]
        linking = functools.partial(progress, "link")
        compile_executable(sources, kernels, target, partial, [tuner_folder()], linking)
        os.replace(partial, out)
    progress("link", 1)
    return sum(len(measured[kernel]) for kernel, _ in spaces)


def _table(
    measured: Workloads,
    spaces: Mapping[tuple[LinearKernel, CpuLevel], Mapping[str, LinearKernel]],
    objects: Sequence[KernelObject],
    weights: int,
) -> str:
    """The C source of the table that tuner.h declares."""
    lines = ["/* What the tuner measures, generated. */", '#include "tuner.h"', ""]
    lines += [f"tuner_linear {o.symbol};" for o in objects]
    symbols = {(o.spec, o.level): o.symbol for o in objects}
    rows = []
    for index, ((kernel, level), specs) in enumerate(spaces.items()):
        lines += ["", f"static const struct tuner_candidate candidates_{index}[] = {{"]
        lines += [f'    {{"{name}", {symbols[spec, level]}}},' for name, spec in specs.items()]
        lines += ["};", f"static const struct tuner_workload workloads_{index}[] = {{"]
        lines += [f"    {{{_workload(kernel, dict(workload))}}}," for workload in measured[kernel]]
        lines += ["};"]
        features = ",".join(level.features)
        input_sum = sum_group(kernel.encoding) // 4 if kernel.encoding.rounds_inputs else 0
        rows.append(
            f'    {{"{kernel.name()}", "{level.name}", "{features}", {input_sum}, candidates_{index}, {len(specs)}, '
            f"workloads_{index}, {len(measured[kernel])}}},"
        )
    lines += ["", "const struct tuner_kernel tuner_kernels[] = {", *rows, "};"]
    lines += [f"const int32_t tuner_kernel_count = {len(rows)};", f"const uint64_t tuner_weight_bytes = {weights};"]
    return "\n".join(lines) + "\n"


def _workload(kernel: LinearKernel, shape: Mapping[str, int]) -> str:
    layout = MatrixLayout(kernel.encoding, shape["rows"], shape["columns"])
    values = (
        shape["rows"],
        shape["columns"],
        shape["tokens"],
        layout.padded_rows,
        padded_width(shape["columns"]),
        layout.scales_offset,
        layout.zeros_offset,
        layout.total_bytes,
    )
    return ", ".join(map(str, values))
