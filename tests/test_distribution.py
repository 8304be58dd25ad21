"""What is installed: the wheel alone runs models, and what only the compiler's packages can do says how to get them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import smc
from benchmarks.models import glassllm
from smc import distribution

ROOT = Path(__file__).parent.parent
PROMPT = "The Queen of Hearts"
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "shared", "*.egg-info", "*.smc", "*.gguf")


def test_every_package_is_known_by_its_import_name() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = metadata.packages_distributions()
    known = {
        "dependencies": distribution.RUNTIME_PACKAGES,
        "compile": distribution.COMPILER_PACKAGES,
        "serve": distribution.SERVER_PACKAGES,
    }
    for name, packages in known.items():
        (part,) = re.findall(rf"^{name} = \[\n(.*?)^\]$", project, re.MULTILINE | re.DOTALL)
        brought = {canonicalize_name(found) for package in packages for found in names[package]}
        assert brought == {canonicalize_name(text) for text in re.findall(r'^ *"([A-Za-z0-9_-]+)', part, re.MULTILINE)}


def test_an_import_that_fails_for_another_reason_stays_a_fault() -> None:
    with pytest.raises(ImportError), distribution.packages_named():
        from smc.distribution import nothing  # type: ignore[attr-defined]  # noqa: F401
    with pytest.raises(ModuleNotFoundError), distribution.packages_named():
        import a_package_of_the_users_pass  # type: ignore[import-not-found]  # noqa: F401


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with wheel and source distribution, made from a copy of this tree."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "tree")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path) -> Path:
    """The `bin` of an environment that has the wheel and what it requires, and nothing else."""
    environment = built / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    for requirement in required(packages):
        for name in {Path(file).parts[0] for file in requirement.files or ()} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(Path(str(requirement.locate_file(name))))
    return environment / "bin"


def required(packages: Path) -> Iterator[metadata.Distribution]:
    """What the installed wheel requires without extras, and what that requires, as it is installed here."""
    (wheel,) = metadata.distributions(name=distribution.NAME, path=[str(packages)])
    waiting, seen = [wheel], set()
    while waiting:
        for text in waiting.pop().requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if requirement.name not in seen and (marker is None or marker.evaluate({"extra": ""})):
                seen.add(requirement.name)
                waiting.append(metadata.distribution(requirement.name))
                yield waiting[-1]


def call(program: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )


@pytest.mark.slow
def test_the_wheel_alone_runs_a_compiled_model(installed: Path, tmp_path: Path) -> None:
    glassllm(tmp_path / "model")
    module = smc.apply(smc.load_checkpoint(tmp_path / "model"), ["quantize-rtn:bits=8"])
    smc.compile(module, out=tmp_path / "model.smc")
    with smc.load(tmp_path / "model.smc") as loaded:
        expected = loaded.generate(PROMPT, max_tokens=40).text
    done = call(installed / "smc", "run", "model.smc", "--raw", PROMPT, "-n", "40", folder=tmp_path)
    assert (done.returncode, done.stdout.removesuffix("\n")) == (0, expected)
    assert len(expected) > 40
    python = "import smc, sys; print(smc.load('model.smc').generate(sys.argv[1], max_tokens=40).text)"
    assert call(installed / "python", "-c", python, PROMPT, folder=tmp_path).stdout == f"{expected}\n"


def test_the_wheel_alone_names_what_installs_the_compiler(installed: Path, tmp_path: Path) -> None:
    done = call(installed / "smc", "compile", "./model", folder=tmp_path)
    command = f"{installed / 'python'} -m pip install 'smc-compiler[compile]'"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f": {command}\n")
    report = json.loads(call(installed / "smc", "doctor", "--json", folder=tmp_path).stdout)
    assert report["ready"] == {"running": True, "compiling": False}
    # pip looks nowhere for another wheel of that name: the installed one says what the extra needs.
    pip = [sys.executable, "-m", "pip", "--python", *shlex.split(command)[:1], *shlex.split(command)[3:]]
    tried = subprocess.run([*pip, "--dry-run", "--no-index"], capture_output=True, text=True, check=False)
    assert "Requirement already satisfied: smc-compiler[compile]" in tried.stdout
    assert "smc-compiler" not in tried.stderr.partition("from smc-compiler")[0]


def test_the_wheel_has_every_file_of_the_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("smc/")}
    files = {path for path in (ROOT / "smc").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == {str(path.relative_to(ROOT)) for path in files}


def test_the_source_distribution_can_be_tested(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "constraints.txt", "tests/conftest.py", "benchmarks/models.py", "docs/passes.md"} <= names
    assert {"smc/runtime/engine/engine.h", "smc/passes/recipes/int4.yaml", "examples/log_levels.py"} <= names
