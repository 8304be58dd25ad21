"""What the measurements start from, made when it is not there yet: model, text, artifact. All of it is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from benchmarks import models, text

BUILD = Path(__file__).parent / "build"


def offgrid_model() -> Path:
    """The off-grid SmolLM2-135M-Instruct, a Hugging Face folder."""
    path = BUILD / "models" / "smollm2-offgrid"
    if not path.exists():
        models.smollm2(path, off_grid=True)
    return path


def evaluation_text() -> Path:
    """Wikipedia prose for perplexity and KL divergence."""
    path = BUILD / "text" / "evaluation.txt"
    if not path.is_file():
        text.write(path.parent)
    return path


def artifact(model: Path, quant: str) -> Path:
    """The model compiled for this machine; compiled again when smc's sources are newer."""
    path = BUILD / "artifacts" / f"{model.name}.{quant}.smc"
    newest = max(file.stat().st_mtime for file in Path("smc").rglob("*.*") if "__pycache__" not in file.parts)
    if not path.is_file() or path.stat().st_mtime < newest:
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [smc_program(), "compile", str(model), "--quant", quant, "--target", "native", "-o", str(path)]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"this command failed: {' '.join(command)}")
    return path


def smc_program() -> str:
    """The `smc` command: the one of this Python's environment, else the first on the path."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("smc", path=places)
    if not found:
        raise SystemExit(f"smc is not installed: `{sys.executable} -m pip install -e .[dev,compile]`")
    return found


def machine() -> str:
    """One line about the CPU, its cores that this process may use, and its memory."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    family = next((line.partition(":")[2].strip() for line in lines if line.startswith("cpu family")), "?")
    number = next((line.partition(":")[2].strip() for line in lines if line.startswith("model\t")), "?")
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    return f"{name} (family {family}, model {number}), {cores} cores, {memory:.0f} GiB"
