"""`smc compile --standalone`: a trained model as one file that runs by itself and is an artifact too."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, models

from benchmarks.models import glassllm
from smc.cli.compile import compile as compile_command
from smc.cli.inspect import inspect
from smc.cli.run import run
from smc.codegen.standalone import standalone_parts
from smc.errors import InputError
from smc.ir import ModelFacts
from smc.targets import TARGETS, find_target
from tests.emulation import CPUS, emulated
from tests.levels import usable_levels

PROMPT = "The Queen of Hearts"
MAX_CODE_BYTES = 800_000
"""The executable and program.so together: growth should be noticed, and be worth it (last: calls of functions)."""


Compiled = Callable[..., tuple[Path, dict[str, object]]]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """(target, recipe) → the file and the summary of compiling it."""
    folder = tmp_path_factory.mktemp("standalone")
    glassllm(folder / "glassllm")

    @functools.cache
    def build(target: str, recipe: str, name: str = "model") -> tuple[Path, dict[str, object]]:
        out = folder / f"{name}-{target}-{recipe}"
        arguments = [str(folder / "glassllm"), "--target", target, "--quant", recipe, "--standalone", "--json"]
        result = CliRunner().invoke(compile_command, [*arguments, "-o", str(out)], catch_exceptions=False)
        return out, json.loads(result.stdout)

    return build


def text_of(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def smc_run(path: Path, *arguments: str) -> str:
    return CliRunner().invoke(run, [str(path), *arguments], catch_exceptions=False).stdout


@pytest.mark.parametrize("sampling", ["", "--temperature 0.9 --top-k 40 --top-p 0.95 --seed 7"])
@pytest.mark.parametrize("level", usable_levels())
def test_it_writes_what_smc_run_writes(compiled: Compiled, level: str, sampling: str):
    path, _ = compiled("native", "int8")
    arguments = ["--raw", PROMPT, "-n", "60", "--level", level, *sampling.split()]
    text = text_of([str(path), *arguments])
    assert text == smc_run(path, *arguments)
    assert len(text) > 60


def test_the_file(compiled: Compiled, tmp_path: Path):
    path, summary = compiled("native", "int8")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        program = archive.getinfo("program.so").file_size
        assert archive.infolist()[0].header_offset >= manifest["executable"]["bytes"]
    assert summary["standalone"] is True and summary["executable_bytes"] == manifest["executable"]["bytes"]
    assert manifest["executable"]["bytes"] + program < MAX_CODE_BYTES
    assert path.read_bytes()[:4] == b"\x7fELF"
    shown = CliRunner().invoke(inspect, [str(path)], catch_exceptions=False).stdout
    assert "glassllm" in shown and "an executable" in shown
    moved = tmp_path / "elsewhere"
    shutil.copy(path, moved)
    assert text_of([str(moved), "--version"]).startswith("glassllm, compiled by smc")
    again, _ = compiled("native", "int8", "again")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.arm64
@pytest.mark.parametrize(("target", "recipe"), [("arm64", "int8"), ("arm64", "int4"), ("arm64-android", "int4")])
def test_arm64(compiled: Compiled, target: str, recipe: str):
    path, summary = compiled(target, recipe)
    native, _ = compiled("native", recipe)
    expected = text_of([str(native), "--raw", PROMPT, "-n", "40"])
    for level in ("neon", "dotprod", "i8mm"):
        command = emulated("aarch64", CPUS[level], path)
        assert text_of([*command, "--raw", PROMPT, "-n", "40"]) == expected
        assert json.loads(text_of([*command, "--info", "--json"]))["level"] == level
    with zipfile.ZipFile(path) as archive:
        assert int(str(summary["executable_bytes"])) + archive.getinfo("program.so").file_size < MAX_CODE_BYTES


FACTS = ModelFacts("some-model", "Llama", context_length=8, vocab_size=9)


def test_what_an_executable_cannot_have_is_named():
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(InputError, match="some-model has no tokenizer"):
        standalone_parts(FACTS, find_target("native"))
    with pytest.raises(InputError, match="WordLevel"):
        standalone_parts(replace(FACTS, tokenizer=words.to_str()), find_target("native"))
    with pytest.raises(InputError, match="no standalone executables for arm64-macos"):
        standalone_parts(FACTS, TARGETS["arm64-macos"])
