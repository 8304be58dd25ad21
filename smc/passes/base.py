"""The base of passes: a frozen dataclass whose fields are the options, with a `run` from module to module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from smc.ir import EncodedTensor, Module

if TYPE_CHECKING:
    from smc.passes.calibration import Calibration

Need = Literal["calibration", "teacher", "torch", "training"]


def _silent(_: str | float) -> None:
    pass


@dataclass(frozen=True)
class Context:
    """What a pass may need besides the module. `smc.apply` makes it.

    calibration: a text for statistics, and what runs the model on it. teacher: the model to learn from; by default the
    one that the chain begins with. training: what runs a pass that trains.
    work: a folder where long work keeps its state; None: nothing is kept.
    seed: for random numbers.
    report: is called with a line about the result; the pass manager puts the pass's name in front.
    progress: is called with how much of a long pass is done, from 0 to 1. note: is called with lines from long work.
    lazy: long work may wait until a parameter is loaded: the caller only needs encodings and shapes.
    requantize: the `load` of parameters that the checkpoint stores as codes and that a quantizer may quantize again.
    """

    calibration: Calibration | None = None
    teacher: Module | None = None
    training: Callable[[Any, Module, Context], Module] | None = None
    work: Path | None = None
    seed: int = 0
    report: Callable[[str], None] = _silent
    progress: Callable[[float], None] = _silent
    note: Callable[[str], None] = _silent
    lazy: bool = False
    requantize: frozenset[Callable[[], EncodedTensor]] = frozenset()


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. The docstring of a pass is its help text, its dataclass fields are its options.

    Options are bool, int, float, str, Literal, tuple[str, ...] or a union of these. Raise InputError in `__post_init__`
    for options that can't be right.
    """

    name: ClassVar[str] = ""
    """The kebab-case name; `register` sets it."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    """What the pass needs before the chain starts: a calibration text, a teacher, torch, training."""

    @abstractmethod
    def run(self, module: Module, context: Context) -> Module:
        """Return the changed module; do not change the given one. Must be deterministic given `context.seed`."""

    def __str__(self) -> str:
        """The text from which `parse_pass` makes this pass: the name and every option."""
        own_first = sorted(fields(self), key=lambda field: bool(field.kw_only))
        options = ",".join(f"{f.name}={option_text(getattr(self, f.name))}" for f in own_first)
        return f"{self.name}:{options}" if options else self.name


def option_text(value: Any) -> str:
    """An option's value as it is written in `-p name:option=value`: lists with "+" between their items."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
