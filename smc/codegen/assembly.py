"""Assembly of an artifact: weights, the linked program, which contains their hash, and the manifest.

A standalone artifact has an executable in front, which contains that hash, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smc.codegen.artifact import ArtifactWriter
from smc.codegen.backends import Backend
from smc.codegen.build import Built, Program
from smc.codegen.cpu.link import link_driver, link_program, link_standalone
from smc.codegen.kernels.layout import LAYOUT_VERSION
from smc.codegen.plan.plan import Plan
from smc.codegen.proof import Expected, prove
from smc.codegen.stages import Stages
from smc.codegen.standalone import StandaloneParts, standalone_facts
from smc.codegen.weights import WeightTable, write_weights
from smc.distribution import VERSION
from smc.ir import ModelFacts, Module
from smc.runtime.manifest import FileFacts, LevelFacts, Manifest, ProofFacts, QualityFacts
from smc.targets import Target


@dataclass(frozen=True)
class Parcel:
    """All parts of an artifact except the hash of its weights."""

    backend: Backend
    program: Program
    built: Built
    target: Target
    quality: QualityFacts | None = None

    @property
    def plan(self) -> Plan:
        """The plan."""
        return self.program.schedule.plan

    def text(self, weights_hash: str) -> str:
        """The source, with the hash of the weights that it belongs to."""
        return self.backend.program(self.program, weights_hash, self.built, self.target)


@dataclass(frozen=True)
class Written:
    """Facts of a written artifact; executable_bytes: those of the program in front of it, 0 without one. proof: None if
    none was requested."""

    weights_hash: str
    program_bytes: int
    executable_bytes: int
    proof: ProofFacts | None


def write_artifact(
    path: Path, parcel: Parcel, parts: StandaloneParts | None, stages: Stages, expected: Expected | None = None
) -> Written:
    """Write all members to `path`; intermediate files go to its folder. parts: those of an executable, or None.

    expected: the logits that the program must compute, else WrongProgramError. None: it is not run.
    """
    plan, table, target = parcel.plan, parcel.program.table, parcel.target
    linker = _Linker(parcel, path.parent)
    front = 0
    if parts is not None:
        with stages("link executable") as report:
            # It precedes the weights and contains their hash: a link with another hash shows its size.
            front = len(linker.executable("0" * 64, parts, report))
    writer = ArtifactWriter(path, front)
    try:
        with stages("write weights") as report:
            weights_hash = writer.stream(
                "weights",
                table.total_bytes,
                lambda member: write_weights(plan, table, target.family, member, report, expected),
            )
        with stages("link") as report:
            both = 0.5 if parts else 1.0
            library = linker.library(weights_hash, lambda fraction: report(both * fraction))
            executable = linker.executable(weights_hash, parts, lambda f: report(both + both * f)) if parts else None
        writer.add("program.so", library)
        proof = None
        if expected is not None:
            with stages("verify"):
                proof = _prove(path, parcel, expected, linker, writer)
        manifest = _manifest(parcel, weights_hash, library, executable, proof)
        _add_members(writer, plan.module.facts, manifest, parts)
    finally:
        writer.close()
    if executable is not None:
        writer.write_front(executable)
    return Written(weights_hash, len(library), front, proof)


def _prove(path: Path, parcel: Parcel, expected: Expected, linker: _Linker, writer: ArtifactWriter) -> ProofFacts:
    """Run the program with the incomplete file."""
    writer.pause()
    weights = parcel.plan.module.weight_count()
    proof = prove(path, path.parent / "program.so", parcel.target, weights, expected, linker.driver)
    writer.resume()
    return proof


@dataclass(frozen=True)
class _Linker:
    """Program text and kernels → machine code; intermediate files go to `folder`."""

    parcel: Parcel
    folder: Path

    def library(self, weights_hash: str, progress: Callable[[float], None]) -> bytes:
        host, out = self.folder / "program.c", self.folder / "program.so"
        host.write_text(self.parcel.text(weights_hash), encoding="utf-8")
        link_program(host, self.parcel.built.files, self.parcel.target, out, progress)
        return out.read_bytes()

    def executable(self, weights_hash: str, parts: StandaloneParts, progress: Callable[[float], None]) -> bytes:
        parcel = self.parcel
        module, weight_bytes = parcel.plan.module, parcel.program.table.total_bytes
        sources = {
            self.folder / "program.c": parcel.text(weights_hash),
            self.folder / "facts.c": standalone_facts(module, parcel.target, parts, weight_bytes),
        }
        for path, text in sources.items():
            path.write_text(text, encoding="utf-8")
        out = self.folder / "executable"
        link_standalone(list(sources), parcel.built.files, parcel.target, out, progress)
        return out.read_bytes()

    def driver(self, out: Path) -> None:
        """The static executable `out` that runs batches; after `library`."""
        link_driver(self.folder / "program.c", self.parcel.built.files, self.parcel.target, out)


def bits_per_weight(module: Module, table: WeightTable) -> float:
    """Stored bits per weight, with all scales and padding."""
    return 8 * table.total_bytes / module.weight_count()


def _manifest(
    parcel: Parcel, weights_hash: str, library: bytes, executable: bytes | None, proof: ProofFacts | None
) -> Manifest:
    module, target, table = parcel.plan.module, parcel.target, parcel.program.table
    facts = module.facts
    return Manifest(
        name=facts.name,
        target=target.name,
        machine=target.machine,
        system=target.system,
        context_length=facts.context_length,
        vocab_size=facts.vocab_size,
        weights=FileFacts(weights_hash, table.total_bytes),
        program=_facts_of(library),
        executable=_facts_of(executable) if executable is not None else None,
        architecture=facts.architecture,
        layout_version=LAYOUT_VERSION,
        levels=tuple(LevelFacts(level.name, tuple(level.features)) for level in target.levels),
        parameters=module.weight_count(),
        bits_per_weight=bits_per_weight(module, table),
        special_tokens=facts.special_tokens,
        generation=facts.generation,
        provenance=facts.provenance,
        encodings={p.name: str(p.encoding) for p in module.parameters.values()},
        shapes={p.name: p.shape for p in module.parameters.values()},
        tuning=parcel.built.tuning_facts(),
        proof=proof.on_any_machine() if proof is not None else None,
        quality=parcel.quality,
        versions={"smc": VERSION, **parcel.built.versions},
    )


def _facts_of(code: bytes) -> FileFacts:
    return FileFacts(hashlib.sha256(code).hexdigest(), len(code))


def _add_members(writer: ArtifactWriter, facts: ModelFacts, manifest: Manifest, parts: StandaloneParts | None) -> None:
    """The manifest without the entries of weights and program."""
    if facts.tokenizer is not None:
        writer.add("tokenizer.json", facts.tokenizer.encode())
    if facts.chat_template is not None:
        writer.add("chat_template.jinja", facts.chat_template.encode())
    for name, data in parts.members.items() if parts else ():
        writer.add(name, data)
    writer.add("manifest.json", manifest.text().encode())
