"""Every kernel of a program, and in C `struct kernels`: pointers to them, one table per level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from smc.codegen.c_literals import c_identifier
from smc.codegen.kernels.abi import form_for
from smc.codegen.kernels.specs import EmbeddingKernel, KernelSpec, LinearKernel
from smc.codegen.objects import KernelObject
from smc.codegen.plan.plan import ByCacheDtype, BySlot, KernelChoice
from smc.codegen.schedule.schedule import Schedule
from smc.targets import Target

CHOSEN_BY_MATRIX = ("linear_f32", "linear_i8", "embedding")
"""The members, arrays, of which a call's matrix chooses a kernel."""


def table_of(spec: LinearKernel | EmbeddingKernel) -> str:
    """The array of a kernel that a matrix chooses: all its kernels have the same parameters."""
    return "embedding" if isinstance(spec, EmbeddingKernel) else f"linear_{form_for(spec.encoding).kind}"


def program_kernels(schedule: Schedule) -> list[KernelSpec]:
    """Every kernel that a program needs, each once, in a fixed order."""
    return list(dict.fromkeys(spec for specs in members(schedule).values() for spec in specs))


def members(schedule: Schedule) -> dict[str, list[KernelSpec]]:
    """The members of `struct kernels` and the kernels in each, in the order of what indexes them."""
    plan = schedule.plan
    found: dict[str, list[KernelSpec]] = {}
    chosen: list[LinearKernel | EmbeddingKernel] = [*plan.linear_kernels(), *plan.embedding_kernels()]
    for spec in chosen:
        found.setdefault(table_of(spec), []).append(spec)
    for kernel in _kernels(schedule):
        if isinstance(kernel, ByCacheDtype):
            found[kernel.name] = kernel.specs()
        elif not isinstance(kernel, BySlot):
            found[kernel.name()] = [kernel]
    return found


def _kernels(schedule: Schedule) -> Iterator[KernelChoice]:
    for function in schedule.functions:
        for task in function.tasks():
            yield from (call.kernel for call in task.calls)
    if argmax := schedule.argmax():
        yield argmax.kernel


def table_name(kernel: KernelChoice) -> str:
    """The member that a kernel is in."""
    if isinstance(kernel, BySlot):
        return f"linear_{kernel.inputs}" if kernel.kind is LinearKernel else "embedding"
    return kernel.name if isinstance(kernel, ByCacheDtype) else kernel.name()


def member(kernel: KernelChoice) -> str:
    """A kernel in `struct kernels`, inside a function."""
    if isinstance(kernel, BySlot):
        return f"{table_name(kernel)}[L->{c_identifier(kernel.slot)}.kernel]"
    return f"{table_name(kernel)}[S->kv_dtype]" if isinstance(kernel, ByCacheDtype) else table_name(kernel)


def kernel_tables(schedule: Schedule, objects: Sequence[KernelObject], target: Target) -> list[str]:
    """`struct kernels`, the kernels' prototypes, and an instance of the struct for every level."""
    table = members(schedule)
    arrays = {name for name, specs in table.items() if len(specs) > 1 or name in CHOSEN_BY_MATRIX}
    lines = ["struct kernels {"]
    for name, specs in table.items():
        [signature] = {spec.signature() for spec in specs}
        size = f"[{len(specs)}]" if name in arrays else ""
        lines.append(f"  int32_t (*{name}{size})({signature});")
    lines += ["};", "", *(f"int32_t {o.symbol}({o.spec.signature()});" for o in objects)]
    symbols = {(o.spec, o.level): o.symbol for o in objects}
    for level in target.cpu_levels:
        lines += ["", f"static const struct kernels kernels_{level.name} = {{"]
        for name, specs in table.items():
            pointers = ", ".join(symbols[spec, level] for spec in specs)
            lines.append(f"    .{name} = {{{pointers}}}," if name in arrays else f"    .{name} = {pointers},")
        lines.append("};")
    return [*lines, ""]
