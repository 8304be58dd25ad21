"""Standalone executables of the counting program: all of the C code, none of the compiler's kernels."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smc.codegen.artifact import ArtifactWriter
from smc.codegen.cpu.link import link_standalone
from smc.codegen.standalone import standalone_facts, standalone_parts
from smc.generation import GenerationDefaults
from smc.ir import F32, Function, ModelFacts, Module, Parameter, encode_float
from smc.structured import functions as structured
from smc.targets import TARGETS, Target
from tests.emulation import emulator
from tests.runtime.conftest import CHAT_TEMPLATE, VOCAB, build_program, byte_tokenizer, manifest_for, program

__all__ = ["build_program", "program"]  # fixtures

COUNTING_PROGRAM = Path(__file__).parents[1] / "runtime" / "counting_program.c"

COUNTING = ModelFacts(
    name="counting",
    architecture="Counting",
    context_length=200,
    vocab_size=VOCAB,
    tokenizer=byte_tokenizer().to_str(),
    chat_template=CHAT_TEMPLATE,
    special_tokens={"eos_token": "<end>"},
    generation=GenerationDefaults(eos_token_ids=(257,)),
    provenance=("made by hand", "not changed"),
)


QUICK = ("SLOW = 7", "SLOW = 1000")
"""No token is slow."""


@dataclass(frozen=True)
class Executable:
    """A standalone executable, run natively or by an emulator."""

    path: Path
    runner: tuple[str, ...] = ()

    def command(self, *arguments: str) -> list[str]:
        return [*self.runner, str(self.path), *arguments]

    def run(self, *arguments: str, stdin: bytes | None = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Its whole output; it reads nothing unless it is given."""
        return subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, timeout=60, check=False, **options
        )

    def text(self, *arguments: str, stdin: bytes = b"") -> str:
        """Its standard output where all went well."""
        done = self.run(*arguments, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    def refusal(self, *arguments: str, stdin: bytes = b"") -> str:
        """Its sentence where the input is wrong."""
        done = self.run(*arguments, stdin=stdin)
        assert (done.returncode, done.stdout) == (2, b"")
        lines = done.stderr.decode().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")

    def moved(self, path: Path) -> Executable:
        return replace(self, path=path)


BuildExecutable = Callable[..., Executable]


def one_weight_module(facts: ModelFacts) -> Module:
    weight = Parameter("weight", (16,), F32, lambda: encode_float(torch.ones(16), F32))
    return Module({"main": Function("main")}, {"weight": weight}, facts)


def build_counting(
    folder: Path,
    target: Target,
    facts: ModelFacts,
    program: bytes,
    changes: Sequence[tuple[str, str]],
    functions: Sequence[structured.Function] = (),
) -> Path:
    """As smc.codegen.assembly puts an executable together, with the counting program in place of a compiled one."""
    source = "#define _GNU_SOURCE\n" + COUNTING_PROGRAM.read_text().replace(*QUICK)  # nanosleep is not of C11
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    parts = standalone_parts(facts, target, functions)
    sources = {
        folder / "program.c": source,
        folder / "facts.c": standalone_facts(one_weight_module(facts), target, parts, 64),
    }
    for path, text in sources.items():
        path.write_text(text)
    link_standalone(list(sources), [], target, folder / "elf")
    elf = (folder / "elf").read_bytes()
    out = folder / "counting"
    writer = ArtifactWriter(out, len(elf))
    generation = facts.generation.to_json()
    manifest = manifest_for(program, name=facts.name, generation=generation, special_tokens=facts.special_tokens)
    members = {"weights": bytes(64), "program.so": program, "tokenizer.json": facts.tokenizer, **parts.members}
    if facts.chat_template is not None:
        members["chat_template.jinja"] = facts.chat_template
    for name, data in {**members, "manifest.json": json.dumps(manifest)}.items():
        writer.add(name, data.encode() if isinstance(data, str) else data)
    writer.close()
    writer.write_front(elf)
    return out


@pytest.fixture(scope="session", params=["native", pytest.param("arm64", marks=pytest.mark.arm64)])
def build_executable(
    request: pytest.FixtureRequest, build_program: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory
) -> BuildExecutable:
    """Makes the executable of a model with some facts changed: (changes to the program's C text, **facts)."""
    machine = {"x86_64": "x86-64", "aarch64": "arm64"}[platform.machine()]
    name = machine if request.param == "native" else request.param
    runner: tuple[str, ...] = ()
    if name != machine:
        runner = (emulator("aarch64"), "-cpu", "cortex-a53")

    quick = build_program(QUICK)

    def build(*changes: tuple[str, str], functions: Sequence[structured.Function] = (), **facts: Any) -> Executable:
        folder, model = tmp_path_factory.mktemp("standalone"), replace(COUNTING, **facts)
        return Executable(build_counting(folder, TARGETS[name], model, quick, changes, functions), runner)

    return build


@pytest.fixture(scope="session")
def executable(build_executable: BuildExecutable) -> Executable:
    return build_executable()


@pytest.fixture(scope="session")
def sampling_executable(build_executable: BuildExecutable) -> Executable:
    """Of a model that samples by default and has no chat template."""
    generation = GenerationDefaults((257,), do_sample=True, temperature=0.7, top_p=0.9, top_k=30)
    return build_executable(generation=generation, chat_template=None)
