"""Dialect: the parts of a program's text that differ between kinds of devices."""

from __future__ import annotations

from typing import Protocol

from smc.codegen.plan.arguments import Buffer
from smc.codegen.program.scope import Scope
from smc.codegen.program.writer import CWriter
from smc.codegen.schedule.schedule import Condition, Phase, Task


class Dialect(Protocol):
    """The frame of functions and phases is the same for all devices (functions.py); a dialect writes the rest."""

    constant: str
    """The qualifiers of constants."""

    run_head: str
    """The head of the function that runs a step."""

    def variables(self) -> list[str]:
        """The first declarations of every function."""

    def named(self, kind: str, name: str, value: str) -> str:
        """The definition of a name for a value, which stays the same. kind: its type, as C has it in front."""

    def condition(self, scope: Scope, condition: Condition) -> str:
        """C that says whether a step has a phase."""

    def blocks(self, scope: Scope, task: Task, phase: Phase) -> str:
        """C for how many blocks a task has in a phase."""

    def open_phase(self, out: CWriter, scope: Scope, number: int, phase: Phase) -> None:
        """The statements at the beginning of a phase: how its work is shared, what is prefetched at its end."""

    def prefetch_caches(self, out: CWriter, scope: Scope, phase: Phase) -> None:
        """Prefetch the places of keys and values in the cache."""

    def all_blocks(self, scope: Scope, task: Task) -> str:
        """The call that does a whole task, for one thread."""

    def task(self, out: CWriter, scope: Scope, task: Task, phase: Phase) -> None:
        """The statements of a thread for the blocks of a task that it has claimed."""

    def move_row(self, scope: Scope, buffer: Buffer, to: str, source: str, begin: str) -> str:
        """Copy a row of floats: from place `begin` of `source`, which has rows as the buffer has, to place `to`."""

    def function_head(self, scope: Scope, parameters: str) -> str:
        """The head of a function's definition."""
