"""Every kernel of a program, and in C `struct kernels`: pointers to them, one table a level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from smc.codegen.kernels.abi import KVDtype
from smc.codegen.kernels.specs import AttentionKernel, KernelSpec, LinearKernel, RopeKernel
from smc.codegen.objects import KernelObject
from smc.codegen.plan import Plan, embedding_kernels, linear_kernels
from smc.targets import Target

KV_DTYPES: tuple[KVDtype, ...] = ("f16", "f32", "i8")
"""In the order of the engine's smc_kv_dtype."""


def program_kernels(plan: Plan) -> list[KernelSpec]:
    """Every kernel that a program needs, each once, in a fixed order."""
    kernels: list[KernelSpec] = [*linear_kernels(plan), *embedding_kernels(plan)]
    for function in plan.functions():
        for phase in function.phases:
            for task in (part for group in phase for part in group.kernels()):
                if isinstance(task.kernel, (RopeKernel, AttentionKernel)):
                    kernels += [_with_kv(task.kernel, dtype) for dtype in KV_DTYPES]
                elif task.kernel is not None:
                    kernels.append(task.kernel)
    top = top_kernel(plan)
    return list(dict.fromkeys([*kernels, *([top] if top else [])]))


def top_kernel(plan: Plan) -> LinearKernel | None:
    """The kernel that finds the largest logits, where logits are what a linear makes of the last hidden states."""
    [*_, last] = plan.head.phases
    if len(last) > 1 or last[0].kind != "linear" or last[0].slot is None:
        return None
    names = {call.attributes["parameters"][last[0].slot] for call in plan.head.calls}
    [encoding] = {plan.module.parameters[name].encoding for name in names}
    return LinearKernel(encoding, top=True)


def kernel_member(spec: KernelSpec) -> str:
    """A kernel's member of `struct kernels`; those of all KV dtypes share one, an array."""
    if isinstance(spec, (RopeKernel, AttentionKernel)):
        return _with_kv(spec, "f16").name().replace("_f16", "")
    return spec.name()


def kernel_tables(plan: Plan, objects: Sequence[KernelObject], target: Target) -> list[str]:
    """`struct kernels`, the kernels' prototypes, and an instance of the struct for every level."""
    prototypes = {o.spec: o.prototype for o in objects}
    members = _members(plan, [o.spec for o in objects if o.level == target.levels[0]])
    arrays = {name for name, specs in members.items() if len(specs) > 1} | {"linear", "embedding"}
    lines = ["struct kernels {"]
    for name, specs in members.items():
        assert len({prototypes[spec] for spec in specs}) == 1, f"kernels of {name} differ in their parameters"
        size = f"[{len(specs)}]" if name in arrays else ""
        lines.append(f"  int32_t (*{name}{size})({prototypes[specs[0]]});")
    lines += ["};", "", *(f"int32_t {o.symbol}({o.prototype});" for o in objects)]
    symbols = {(o.spec, o.level): o.symbol for o in objects}
    for level in target.levels:
        lines += ["", f"static const struct kernels kernels_{level.name} = {{"]
        for name, specs in members.items():
            pointers = ", ".join(symbols[spec, level] for spec in specs)
            lines.append(f"    .{name} = {{{pointers}}}," if name in arrays else f"    .{name} = {pointers},")
        lines.append("};")
    return [*lines, ""]


def _members(plan: Plan, specs: Sequence[KernelSpec]) -> dict[str, list[KernelSpec]]:
    """The members of `struct kernels` and the kernels in each, in the order of what indexes them."""
    linears, embeddings = linear_kernels(plan), embedding_kernels(plan)
    members: dict[str, list[KernelSpec]] = {"linear": [*linears], "embedding": [*embeddings]}
    for spec in dict.fromkeys(specs):
        if isinstance(spec, (RopeKernel, AttentionKernel)):
            members[kernel_member(spec)] = [_with_kv(spec, dtype) for dtype in KV_DTYPES]
        elif spec not in linears and spec not in embeddings:
            members[kernel_member(spec)] = [spec]
    return members


def _with_kv(kernel: RopeKernel | AttentionKernel, dtype: KVDtype) -> RopeKernel | AttentionKernel:
    return replace(kernel, shape=replace(kernel.shape, kv_dtype=dtype))
