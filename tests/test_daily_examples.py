"""The programs of examples/ that use compiled models, with a tiny trained one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import smc
from benchmarks.models import glassllm
from smc.passes import load_recipe
from smc.runtime.ngram import NgramModel
from tests.emulation import CPUS, emulator

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.slow


def module_of(path: Path) -> ModuleType:
    """A program of examples/."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "glassllm"
    glassllm(folder)
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> Path:
    module = smc.apply(smc.load_checkpoint(checkpoint), load_recipe("int8").passes)
    smc.compile(module, out=checkpoint.parent / "glassllm.smc")
    return checkpoint.parent / "glassllm.smc"


# ---- the keyboard


def test_the_keyboard(artifact: Path, tmp_path: Path):
    own = "Please send the parcel to Zwickau before noon. The parcel to Zwickau is heavy. "
    with smc.load(artifact, threads=1) as model:
        tokens = model.encode(own * 3, add_special_tokens=False)
        NgramModel.build(tokens, model.vocab_size, model.artifact.tokenizer, 5).save(tmp_path / "own.ngram")
    command = [sys.executable, EXAMPLES / "keyboard.py", artifact, tmp_path / "own.ngram"]

    def words(text: str) -> list[str]:
        done = subprocess.run([*command, text], check=True, capture_output=True, text=True)
        return done.stdout.split()

    assert words("Please send the parcel to ")[0] == "Zwickau"  # which the texts alone know
    assert words("Please send the par")[0] == "parcel"
    assert "Alice" in words("“I wish I hadn’t cried so much!” said Al")  # which the model knows
    assert all(word.startswith("th") for word in words("Then she saw th"))


# ---- the plugin of llm


def test_the_plugin_of_llm(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    llm = pytest.importorskip("llm", reason="llm is not installed (the extra dev has it)")
    from llm.plugins import pm

    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("LLM_SMC_MODELS", str(artifact.parent))
    plugin = module_of(EXAMPLES / "llm-smc" / "llm_smc.py")
    pm.register(plugin, "smc")
    try:
        model = llm.get_model("smc/glassllm")
        with smc.load(artifact, threads=1) as alone:
            expected = alone.generate("Alice was", max_tokens=12, temperature=0.0).text
        response = model.prompt("Alice was", max_tokens=12, temperature=0.0)
        assert "".join(response) == response.text() == expected
        assert response.usage().output == 12
        with pytest.raises(Exception, match="greater than or equal to 1"):
            model.prompt("x", max_tokens=0)
    finally:
        pm.unregister(plugin)


# ---- the smart speaker


@pytest.fixture(scope="module")
def speaker(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Trained on its data; makes its executable for a target."""
    folder = tmp_path_factory.mktemp("speaker")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a second thread makes so small a model slower

    def run(*command: str | Path) -> None:
        subprocess.run([sys.executable, *command], check=True, cwd=folder, env=environment)

    run(EXAMPLES / "speaker" / "make_data.py", folder)
    recipe = (EXAMPLES / "speaker" / "recipe.yaml").read_text()
    recipe = recipe.replace("3.0e-4", "3.0e-3").replace("steps: 150", "steps: 60")  # the model is tiny
    (folder / "recipe.yaml").write_text(recipe)
    run("-m", "smc", "optimize", checkpoint, "--recipe", "recipe.yaml", "-o", "speaker")

    def build(target: str) -> Path:
        functions = EXAMPLES / "speaker" / "home.py"
        options = ["--quant", "int8", "--target", target, "--standalone", "--functions", functions]
        run("-m", "smc", "compile", "speaker", *options, "-o", f"speaker.{target}")
        return folder / f"speaker.{target}"

    return build


def test_the_smart_speaker_under_emulation(speaker: Callable[[str], Path]):
    """One file for a Raspberry Pi 4; its calls are those that the queries request."""
    program = speaker("raspberry-pi-4")
    command = [emulator("aarch64"), "-cpu", CPUS["neon"], str(program), "--chat", "-q", "--ctx", "128"]
    tests = [json.loads(line) for line in (program.parent / "test.jsonl").read_text().splitlines()]
    queries = "".join(f"{test['query']}\n" for test in tests)
    done = subprocess.run(command, input=queries, check=True, capture_output=True, text=True)
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(calls) == len(tests)
    names = ["light", "thermostat", "weather"]
    wanted = [names[int(test["completion"][len("<fn_")])] for test in tests]
    assert np.mean([call["name"] == name for call, name in zip(calls, wanted, strict=True)]) > 0.8
    for call in calls:
        arguments = call["arguments"]
        if call["name"] == "light":
            assert arguments["room"] in ("kitchen", "bedroom", "hall") and arguments["on"] in (True, False)
        elif call["name"] == "thermostat":
            assert isinstance(arguments["degrees"], int)
        else:
            assert isinstance(arguments["city"], str)
