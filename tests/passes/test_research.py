"""docs/research.md: its files are written, and its commands run, in the order of the page."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks.models import glassllm
from smc.cli.main import run
from smc.passes import registry

PAGE = Path(__file__).parents[2] / "docs" / "research.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEXT = "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do. "


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prose.txt").write_text(TEXT * 12)
    (tmp_path / "calibration.txt").write_text("".join(f"In the year {year} there was peace. " for year in range(200)))
    return tmp_path


@pytest.mark.slow
def test_every_block_runs(folder, capsys, monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry.registered_passes()))
    files, figures = [], []
    for language, content in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            files.append(content)
            continue
        for line in content.splitlines():
            if line.startswith("python"):
                assert line == "python -m benchmarks.models glassllm glassllm"
                glassllm(Path("glassllm"))
                continue
            # A file of passes is read once in a process; a reader's next command sees what was added.
            name = f"squares{len(files)}.py"
            Path(name).write_text("".join(files).replace('"squares"', f'"squares{len(files)}"'), encoding="utf-8")
            renamed = line.replace("squares.py:squares", f"{name}:squares{len(files)}")
            arguments = shlex.split(renamed.replace(f"{len(files)}-gptq", "-gptq"))[1:]
            capsys.readouterr()
            assert run([*arguments, *(["--json"] if arguments[0] == "eval" else [])]) == 0, line
            if arguments[0] == "eval":
                figures.append(json.loads(capsys.readouterr().out))
    mine, nearest, compiled, sequential = figures
    assert mine["bits_per_weight"] == pytest.approx(nearest["bits_per_weight"])
    assert compiled["kl_divergence"]["mean"] == pytest.approx(mine["kl_divergence"]["mean"], rel=0.03)
    assert 0 < sequential["kl_divergence"]["mean"] < 0.2
