"""Dialect: what the text of a program says in its own way for each kind of device."""

from __future__ import annotations

from typing import Protocol

from smc.codegen.plan.arguments import Buffer
from smc.codegen.program.scope import Scope
from smc.codegen.program.writer import CWriter
from smc.codegen.schedule.schedule import Condition, Phase, Task


class Dialect(Protocol):
    """The frame of functions and phases is the same for all devices (functions.py); this is what differs."""

    constant: str
    """What constants are declared with."""

    run_head: str
    """The head of the definition of what runs a step."""

    def variables(self) -> list[str]:
        """What every function declares first."""

    def named(self, kind: str, name: str, value: str) -> str:
        """The definition of a name for a value, which stays the same. kind: its type, as C has it in front."""

    def condition(self, scope: Scope, condition: Condition) -> str:
        """C that says whether a step has a phase."""

    def blocks(self, scope: Scope, task: Task, phase: Phase) -> str:
        """C for how many blocks a task has in a phase."""

    def open_phase(self, out: CWriter, scope: Scope, number: int, phase: Phase) -> None:
        """What is said of a phase that has just begun: how its work is shared out, what is prefetched at its end."""

    def prefetch_caches(self, out: CWriter, scope: Scope, phase: Phase) -> None:
        """Prefetch the places of keys and values in the cache."""

    def all_blocks(self, scope: Scope, task: Task) -> str:
        """The call that does a task whole, for one thread."""

    def task(self, out: CWriter, scope: Scope, task: Task, phase: Phase) -> None:
        """What a thread does with the blocks of a task that it has claimed."""

    def move_row(self, scope: Scope, buffer: Buffer, to: str, source: str, begin: str) -> str:
        """Copy a row of floats: from place `begin` of `source`, which has rows as the buffer has, to place `to`."""

    def function_head(self, scope: Scope, parameters: str) -> str:
        """The head of a function's definition."""
