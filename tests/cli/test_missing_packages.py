"""Commands where packages are not installed: one sentence with the command that installs them, and exit status 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smc.cli import main
from smc.distribution import COMPILER_PACKAGES

ROOT = Path(__file__).parents[2]

COMMANDS = {
    "compile": ["compile", "./model"],
    "inspect": ["inspect", "./model"],
    "inspect --ir": ["inspect", "./model", "--ir"],
    "passes": ["passes"],
    "a pass": ["passes", "quantize-rtn"],
    "encodings": ["encodings"],
    "tune": ["tune"],
    "tune MODEL": ["tune", "./model"],
    "tune ARTIFACT": ["tune", "model.smc"],
}
"""Those that the compiler's packages are needed for."""


def run_hidden(statements: str, hidden: frozenset[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run statements where packages can't be imported."""
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({sorted(hidden)!r}))\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + statements],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_without_the_compiler_a_command_names_what_installs_it(
    arguments: list[str], artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    shutil.copy(artifact, tmp_path / "model.smc")
    call = f"from smc.cli.main import run; sys.exit(run({arguments!r}))"
    done = run_hidden(call, COMPILER_PACKAGES, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: this needs the package ")
    assert done.stderr.endswith(f": {sys.executable} -m pip install -e '{ROOT}[compile]'\n")
    assert done.stderr.count("\n") == 1


def test_without_the_compiler_all_else_works(artifact: Path, tmp_path: Path) -> None:
    calls = [
        ["--version"],
        ["run", str(artifact), "hello", "-n", "3"],
        ["bench", str(artifact), "--prompt-tokens", "4", "--decode-tokens", "2", "--repeat", "1"],
        ["inspect", str(artifact)],
        ["targets"],
        ["doctor"],
        *([name, "--help"] for name in main.COMMANDS),
    ]
    call = f"from smc.cli.main import run\nfor arguments in {calls!r}: assert run(arguments) == 0, arguments"
    done = run_hidden(call, COMPILER_PACKAGES, tmp_path)
    assert done.returncode == 0, done.stderr


def test_without_the_compiler_python_gets_the_sentence_too(tmp_path: Path) -> None:
    call = "import smc\ntry: smc.load_checkpoint('model')\nexcept smc.InputError as error: print(error)"
    done = run_hidden(call, COMPILER_PACKAGES, tmp_path)
    assert "pip install -e" in done.stdout


def test_a_broken_runtime_names_what_mends_it(artifact: Path, tmp_path: Path) -> None:
    call = f"from smc.cli.main import run; sys.exit(run(['run', {str(artifact)!r}, 'x']))"
    done = run_hidden(call, frozenset({"tokenizers"}), tmp_path)
    assert done.stderr == f"error: the package tokenizers is missing: {sys.executable} -m pip install -e {ROOT}\n"
    assert done.returncode == 2
