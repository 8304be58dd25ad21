"""What a run keeps in its folder, so that it can be continued: tensors and numbers in a file, and a log.

A state gets its name only when it is complete. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from smc.errors import InputError

STATE, RESULT, LOG, CURVE = "state.safetensors", "result.safetensors", "log.jsonl", "loss.svg"


@dataclass
class Progress:
    """How far a run is. seconds: of training, over all its starts. best: the least held-out loss, of best_step.

    waited: evaluations since that step.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    stopped: bool = False


def save(path: Path, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Write a file; it gets its name when it is complete. InputError if the disk has no room for it."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) + (1 << 20)
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise InputError(
            f"no room for the state of the training in {path.parent}: it needs {needed / 1e6:,.0f} MB, "
            f"{free / 1e6:,.0f} MB are free: choose another folder with --work"
        )
    partial = path.with_name(f"{path.name}.partial")
    try:
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(whole, partial, {"progress": json.dumps(asdict(progress))})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> tuple[dict[str, Tensor], Progress] | None:
    """The saved state; None if there is none. InputError if the file is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads(file.metadata()["progress"])
            return {name: file.get_tensor(name) for name in file.keys()}, Progress(**numbers)  # noqa: SIM118
    except Exception as error:  # safetensors has exceptions of its own
        raise InputError(f"{path} is damaged ({error}): remove its folder to start again") from None


class Log:
    """The file log.jsonl: one line of numbers per step."""

    def __init__(self, path: Path, step: int) -> None:
        """Continue after this step: remove later lines, which an interrupted run has written."""
        kept = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    break  # a line that was cut off
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.path = path

    def add(self, numbers: Mapping[str, object]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(numbers) + "\n")

    def points(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of all lines that have it."""
        lines = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
        return [(line["step"], line[key]) for line in lines if line.get(key) is not None]
