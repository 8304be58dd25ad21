"""The documentation is true: links lead somewhere, commands exist, code shown is the code that runs."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import smc
from smc.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced code blocks of a language in a page."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match[1] == language:
            yield match[2]


def commands(program: str) -> list[str]:
    """The lines of all shell blocks that call a program, continued lines joined, comments cut."""
    lines = [
        line.partition(" #")[0].strip()
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return sorted({line for line in lines if line.split(" ")[0] == program})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("line", commands("smc"))
def test_commands_parse(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = main.LazyGroup().get_command(click.Context(main.cli), name)
    assert command is not None
    command.make_context(name, arguments)


@pytest.mark.parametrize("line", commands("make"))
def test_make_targets_exist(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"\n{line.split()[1]}:" in makefile


@pytest.mark.parametrize("line", commands("python"))
def test_modules_exist(line: str) -> None:
    words = shlex.split(line)
    assert words[1] == "-m"
    importlib.import_module(words[2])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in main.COMMANDS if f"`smc {name}" not in text] == []


def test_the_example_is_the_one_shown() -> None:
    shown = next(block for block in blocks(ROOT / "README.md", "python") if "LogLevels" in block)
    assert shown in (ROOT / "examples" / "log_levels.py").read_text(encoding="utf-8")


@pytest.mark.slow
def test_first_steps_run(tmp_path: Path) -> None:
    """Every command and the Python code of the README, from the first steps on, in a folder of their own."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = "".join(
        match[2] if match[1] == "sh" else f"cat > example.py <<'END'\n{match[2]}END\npython example.py\n"
        for match in BLOCK.finditer(readme.partition("\n## First steps\n")[2])
        if match[1] == "sh" or "import smc" in match[2]
    )
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, command in {"smc": f"{sys.executable} -m smc", "python": sys.executable}.items():
        (bin_folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (bin_folder / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Paris" in run.stdout
    assert {path.name for path in tmp_path.glob("*.smc")} == {"smollm2.smc", "log_levels.smc"}


def test_changelog_has_this_version() -> None:
    assert f"\n## {smc.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
