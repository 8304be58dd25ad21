"""Dumps: the results between the steps of a compilation, written to a folder as soon as they exist."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from smc.codegen.build import Built
from smc.codegen.plan.plan import Plan
from smc.codegen.plan.printer import print_plan
from smc.codegen.schedule.printer import print_schedule
from smc.codegen.schedule.schedule import Schedule
from smc.targets import Target

KINDS = ("plan", "schedule", "c", "tir", "asm", "obj", "cu", "ptx", "sass")
"""The kinds, in the order in which they are made."""


class Dumps:
    """Listings of some kinds; None as folder: of none."""

    def __init__(self, folder: Path | None, kinds: Collection[str]) -> None:
        self.folder, self.kinds = folder, set(kinds) if folder else set[str]()

    def plan(self, plan: Plan) -> None:
        """plan.txt: kernels on buffers."""
        if "plan" in self.kinds:
            self._write("plan.txt", print_plan(plan))

    def schedule(self, schedule: Schedule) -> None:
        """schedule.txt: phases of tasks."""
        if "schedule" in self.kinds:
            self._write("schedule.txt", print_schedule(schedule))

    def built(self, built: Built, target: Target) -> None:
        """Of a CPU every kernel's TIR (NAME.py), assembly (NAME.s) and object (NAME.o); of GPUs the device's program
        (program.cu), and of every level its PTX (LEVEL.ptx) and machine code (LEVEL.sass)."""
        if self.folder and self.kinds & {"tir", "asm", "obj", "cu", "ptx", "sass"}:
            self.folder.mkdir(parents=True, exist_ok=True)
            built.write_listings(target, self.folder, self.kinds)

    def program(self, text: str) -> None:
        """program.c: the host program."""
        if "c" in self.kinds:
            self._write("program.c", text)

    def _write(self, name: str, text: str) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")
