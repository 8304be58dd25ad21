"""Inputs of the measurements: model, text, artifact. They are made when they are missing, and kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import models, text

BUILD = Path(__file__).parent / "build"
SMC = [sys.executable, "-m", "smc"]


def offgrid_model() -> Path:
    """The off-grid SmolLM2-135M-Instruct, a Hugging Face folder."""
    path = BUILD / "models" / "smollm2-offgrid"
    if not path.exists():
        models.smollm2(path, off_grid=True)
    return path


def random_model(name: str, config: dict[str, Any]) -> Path:
    """Random weights in a model's shape, a Hugging Face folder: for speed, not for text."""
    path = BUILD / "models" / f"{name}-random"
    if not path.exists():
        models.random(path, config)
    return path


def tinyllama_model() -> Path:
    """TinyLlama's shape, 1.1 billion weights."""
    return random_model("tinyllama", models.TINYLLAMA_CONFIG)


def evaluation_text() -> Path:
    """Wikipedia prose for perplexity and KL divergence."""
    path = BUILD / "text" / "evaluation.txt"
    if not path.is_file():
        text.write(path.parent)
    return path


def artifact(model: Path, quant: str) -> Path:
    """The model compiled for this machine; compiled again when smc's sources are newer."""
    path = BUILD / "artifacts" / f"{model.name}.{quant}.smc"
    if not is_newer_than_smc(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [*SMC, "compile", str(model), "--quant", quant, "--target", "native", "-o", str(path)]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"this command failed: {' '.join(command)}")
    return path


def is_newer_than_smc(path: Path) -> bool:
    """Whether a file is there and newer than every source file of smc."""
    sources = [file for file in (Path(__file__).parents[1] / "smc").rglob("*.*") if "__pycache__" not in file.parts]
    return path.is_file() and path.stat().st_mtime >= max(file.stat().st_mtime for file in sources)


def commit() -> str:
    """The commit that is checked out, with "+" where what is measured differs from it; "unknown" outside a checkout."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short=7", "HEAD") + (
            "+" if git("status", "--porcelain", "smc", "benchmarks") else ""
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """One line about the CPU, its cores that this process may use, and its memory."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name, family, model = (facts.get(key, "?") for key in ("model name", "cpu family", "model"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name} (family {family}, model {model}), {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"
