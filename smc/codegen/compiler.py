"""From a module to an artifact: plan, kernels, weights, host program, link, pack."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from smc.codegen.artifact import ArtifactWriter
from smc.codegen.backends import Backend, find_backend
from smc.codegen.cache import cache_trouble
from smc.codegen.cpu.link import link_program, link_standalone
from smc.codegen.cpu.tuning import Choice, Tuning, load_tuning, records_hash
from smc.codegen.cpu.tuning_kit import plan_matrices, workloads
from smc.codegen.kernels.layout import LAYOUT_VERSION
from smc.codegen.objects import TVM_PINS, KernelObject, build_kernels, write_listings
from smc.codegen.output import output_file, output_folder, work_folder
from smc.codegen.plan.planner import make_plan
from smc.codegen.schedule.memory import MemoryPlan, plan_memory
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.standalone import StandaloneParts, standalone_facts, standalone_parts
from smc.codegen.texts import settle_texts
from smc.codegen.weights import WeightTable, place_weights, write_weights
from smc.distribution import VERSION
from smc.errors import Notice
from smc.ir import ModelFacts, Module, verify
from smc.runtime.manifest import FileFacts, LevelFacts, Manifest, TuningFacts
from smc.targets import Target, find_target


@dataclass
class CompileReport:
    """What was made: sizes in bytes, seconds a stage.

    executable_bytes: of the program in front of the artifact, 0 without one. no_chat: why it can't have chats though
    the model has a chat template, the end of a sentence. notes: what is odd about the model's texts, a sentence each.
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
    notes: list[str] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)


def compile_module(
    module: Module,
    target: str = "native",
    out: str | Path = "model.smc",
    *,
    standalone: bool = False,
    progress: Callable[[str, float], None] | None = None,
    emit: Path | None = None,
    emit_kinds: Sequence[str] = (),
    records: Path | None = None,
) -> CompileReport:
    """Compile a module for a target into the artifact `out`, which appears only when it is complete.

    standalone: make it an executable too.
    progress: called with (stage, fraction done). emit: a folder for listings of the kinds "c", "tir", "asm" and "obj".
    records: a file of tuning records, in place of the user's.
    Raises InputError for unknown targets, for ops or encodings without a kernel, and for what can't be written.
    """
    inputs = [path for path in (module.facts.source, records) if path is not None]
    machine, file = find_target(target), output_file(Path(out), inputs)
    if emit is not None:
        output_folder(emit)
    if trouble := cache_trouble():
        warnings.warn(f"no cache for kernels: {trouble}; SMC_CACHE names another folder", Notice, stacklevel=2)
    verify(module)
    facts, notes = settle_texts(module.facts)
    module = replace(module, facts=facts)
    stages = _Stages(progress or (lambda stage, fraction: None))
    with stages("plan"):
        plan = make_plan(module)
        backend = find_backend(machine)
        schedule = backend.schedule(plan)
        memory, table = plan_memory(schedule), place_weights(plan)
        parts = standalone_parts(module.facts, machine) if standalone else None
        tuning = load_tuning(target, records)
    with _errors_name(file), work_folder(file) as folder:
        with stages("build kernels") as report:
            kernels = _build_kernels(backend, schedule, machine, tuning, folder, report)
        partial = folder / "artifact"
        linker = _Linker(backend, schedule, memory, table, kernels.objects, machine, folder)
        written = _write_artifact(partial, linker, kernels, parts, stages)
        if emit is not None:
            _write_emitted(emit, emit_kinds, linker.host(written.weights_hash), kernels, machine)
        size = partial.stat().st_size
        os.replace(partial, file)
    return CompileReport(
        machine.name,
        [level.name for level in machine.levels],
        size,
        written.program_bytes,
        table.total_bytes,
        _bits_per_weight(module, table),
        len(kernels.objects),
        written.executable_bytes,
        parts.no_chat if parts else None,
        notes,
        stages.seconds,
    )


@dataclass(frozen=True)
class _Kernels:
    """A program's kernels of all levels, in one order: what was chosen for each, what was built, and the same objects
    under the names by which the host program knows them."""

    choices: list[Choice]
    built: list[KernelObject]
    objects: list[KernelObject]


def _build_kernels(
    backend: Backend, schedule: Schedule, target: Target, tuning: Tuning, folder: Path, report: Callable[[float], None]
) -> _Kernels:
    wanted = [(spec, level) for level in target.levels for spec in backend.kernels(schedule)]
    work = workloads(plan_matrices(schedule.plan))
    choices = [tuning.choose(spec, level, work) for spec, level in wanted]
    built = build_kernels(
        [(choice.spec, level) for choice, (_, level) in zip(choices, wanted, strict=True)], target, folder, report
    )
    # The host program knows kernels by what they compute; which candidate does it differs from level to level.
    objects = [replace(o, spec=spec) for o, (spec, _) in zip(built, wanted, strict=True)]
    return _Kernels(choices, built, objects)


@dataclass(frozen=True)
class _Written:
    """Facts of a written artifact."""

    weights_hash: str
    program_bytes: int
    executable_bytes: int


def _write_artifact(
    path: Path, linker: _Linker, kernels: _Kernels, parts: StandaloneParts | None, stages: _Stages
) -> _Written:
    """Weights, the program, which knows their hash, and the executable in front of them, if there is one."""
    plan, table, target = linker.schedule.plan, linker.table, linker.target
    module = plan.module
    front = 0
    if parts is not None:
        with stages("link executable") as report:
            # It stands before the weights and contains their hash: its size is known from a link with another hash.
            front = len(linker.executable("0" * 64, parts, report))
    writer = ArtifactWriter(path, front)
    try:
        with stages("write weights") as report:
            weights_hash = writer.stream(
                "weights",
                table.total_bytes,
                lambda member: write_weights(plan, table, target.family, member, report),
            )
        with stages("link") as report:
            both = 0.5 if parts else 1.0
            program = linker.library(weights_hash, lambda fraction: report(both * fraction))
            executable = linker.executable(weights_hash, parts, lambda f: report(both + both * f)) if parts else None
        manifest = _manifest(linker, kernels, weights_hash, program, executable)
        _add_members(writer, module.facts, manifest, program, parts)
    finally:
        writer.close()
    if executable is not None:
        writer.write_front(executable)
    return _Written(weights_hash, len(program), front)


def _write_emitted(folder: Path, kinds: Sequence[str], host: str, kernels: _Kernels, target: Target) -> None:
    """Listings of the kinds that were asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    if "c" in kinds:
        (folder / "program.c").write_text(host, encoding="utf-8")
    if {"tir", "asm", "obj"} & set(kinds):
        write_listings(kernels.built, target, folder, kinds)


@dataclass(frozen=True)
class _Linker:
    """Host program and kernels → machine code; intermediate files go to `folder`."""

    backend: Backend
    schedule: Schedule
    memory: MemoryPlan
    table: WeightTable
    objects: Sequence[KernelObject]
    target: Target
    folder: Path

    def host(self, weights_hash: str) -> str:
        parts = (self.schedule, self.memory, self.table)
        return self.backend.program(*parts, weights_hash, self.objects, self.target)

    def library(self, weights_hash: str, progress: Callable[[float], None]) -> bytes:
        host, out = self.folder / "program.c", self.folder / "program.so"
        host.write_text(self.host(weights_hash), encoding="utf-8")
        link_program(host, [o.path for o in self.objects], self.target, out, progress)
        return out.read_bytes()

    def executable(self, weights_hash: str, parts: StandaloneParts, progress: Callable[[float], None]) -> bytes:
        module = self.schedule.plan.module
        sources = {
            self.folder / "program.c": self.host(weights_hash),
            self.folder / "facts.c": standalone_facts(module, self.target, parts, self.table.total_bytes),
        }
        for path, text in sources.items():
            path.write_text(text, encoding="utf-8")
        out = self.folder / "executable"
        link_standalone(list(sources), [o.path for o in self.objects], self.target, out, progress)
        return out.read_bytes()


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """A failed write does not say of which file: let it name this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _manifest(
    linker: _Linker, kernels: _Kernels, weights_hash: str, program: bytes, executable: bytes | None
) -> Manifest:
    module, target, table = linker.schedule.plan.module, linker.target, linker.table
    facts = module.facts
    return Manifest(
        name=facts.name,
        target=target.name,
        machine=target.machine,
        system=target.system,
        context_length=facts.context_length,
        vocab_size=facts.vocab_size,
        weights=FileFacts(weights_hash, table.total_bytes),
        program=_facts_of(program),
        executable=_facts_of(executable) if executable is not None else None,
        architecture=facts.architecture,
        layout_version=LAYOUT_VERSION,
        levels=tuple(LevelFacts(level.name, tuple(level.features)) for level in target.levels),
        parameters=module.weight_count(),
        bits_per_weight=_bits_per_weight(module, table),
        special_tokens=facts.special_tokens,
        generation=facts.generation,
        provenance=facts.provenance,
        encodings={p.name: str(p.encoding) for p in module.parameters.values()},
        shapes={p.name: p.shape for p in module.parameters.values()},
        tuning=_tuning_facts(kernels),
        versions={"smc": VERSION, **TVM_PINS},
    )


def _bits_per_weight(module: Module, table: WeightTable) -> float:
    return 8 * table.total_bytes / module.weight_count()


def _facts_of(code: bytes) -> FileFacts:
    return FileFacts(hashlib.sha256(code).hexdigest(), len(code))


def _add_members(
    writer: ArtifactWriter, facts: ModelFacts, manifest: Manifest, program: bytes, parts: StandaloneParts | None
) -> None:
    """All but the weights."""
    writer.add("program.so", program)
    if facts.tokenizer is not None:
        writer.add("tokenizer.json", facts.tokenizer.encode())
    if facts.chat_template is not None:
        writer.add("chat_template.jinja", facts.chat_template.encode())
    for name, data in parts.members.items() if parts else ():
        writer.add(name, data)
    writer.add("manifest.json", manifest.text().encode())


def _tuning_facts(kernels: _Kernels) -> TuningFacts:
    """Which candidates records chose, by the kernel's symbol, and the hash of these records."""
    pairs = zip(kernels.choices, kernels.built, strict=True)
    names = {o.symbol: choice.name for choice, o in pairs if choice.records}
    return TuningFacts(names, records_hash(kernels.choices))


class _Stages:
    """Times stages and reports their progress: `with stages(name) as report`."""

    def __init__(self, progress: Callable[[str, float], None]) -> None:
        self.progress, self.seconds, self.name, self.began = progress, dict[str, float](), "", 0.0

    def __call__(self, name: str) -> _Stages:
        self.name = name
        return self

    def __enter__(self) -> Callable[[float], None]:
        name, self.began = self.name, time.perf_counter()
        self.progress(name, 0.0)
        return lambda fraction: self.progress(name, fraction)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.began
            self.progress(self.name, 1.0)
