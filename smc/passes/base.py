"""What a pass is: a frozen dataclass whose fields are its options, and a `run` from module to module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from smc.ir import EncodedTensor, Module

Need = Literal["calibration", "teacher", "torch"]


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Context:
    """What a pass may need besides the module.

    calibration: a text file to take statistics on. teacher: the model to learn from. seed: for whatever is random.
    report: takes one line of text about what was done; the pass manager puts the pass's name in front.
    requantize: the `load` of parameters that the checkpoint stores as codes and that a quantizer may quantize again.
    """

    calibration: Path | None = None
    teacher: Module | None = None
    seed: int = 0
    report: Callable[[str], None] = _silent
    requantize: frozenset[Callable[[], EncodedTensor]] = frozenset()


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. The docstring of a pass is its help text, its dataclass fields are its options.

    Options are bool, int, float, str, Literal, tuple[str, ...] or a union of these. Options that can't be right raise
    InputError in `__post_init__`.
    """

    name: ClassVar[str] = ""
    """The kebab-case name; `register` sets it."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    """What must be there before the chain starts: a calibration text, a teacher, torch."""

    @abstractmethod
    def run(self, module: Module, context: Context) -> Module:
        """The changed module; the given one stays as it is. Must be deterministic given `context.seed`."""

    def __str__(self) -> str:
        """The text that `parse_pass` reads back: the name and every option."""
        own_first = sorted(fields(self), key=lambda field: bool(field.kw_only))
        options = ",".join(f"{f.name}={option_text(getattr(self, f.name))}" for f in own_first)
        return f"{self.name}:{options}" if options else self.name


def option_text(value: Any) -> str:
    """An option's value as it is written in `-p name:option=value`: lists with "+" between their items."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return "+".join(value) if isinstance(value, tuple) else str(value)
