"""The size and the quality of a model after each step of a chain of passes.

Measurements take long, so the work folder keeps their results, by all that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from smc.errors import InputError
from smc.ir import Module, print_function
from smc.passes import Pass, Training
from smc.reference import Reference
from smc.reference.evaluation import Evaluation, LogitsFunction, score, text_windows
from smc.reference.text import read_tokens
from smc.training import curve_of

WINDOW, WINDOWS = 512, 16
"""Tokens of a window of the text, and how many windows are taken at most."""


@dataclass(frozen=True)
class Step:
    """A model after a pass. name: the pass. done: what it did, in words. bytes: those of all parameters as stored.

    quality: None for an artifact of another machine, which can't run here. curve: the loss of a training, as SVG.
    """

    name: str
    done: str
    layers: int
    weights: int
    bytes: int
    bits_per_weight: float
    quality: Evaluation | None
    curve: str | None = None


class Steps:
    """Measures every module of a chain: `smc.apply(…, report=steps.report, after=steps.after)`."""

    def __init__(
        self,
        module: Module,
        text: Path,
        work: Path | None = None,
        teacher: Module | None = None,
        report: Callable[[str], None] = lambda line: None,
        progress: Callable[[float], None] = lambda fraction: None,
    ) -> None:
        """Measure the model that the chain begins with.

        text: what quality is measured on. work: where results are kept. teacher: that of the chain. report: gets the
        lines of the passes. progress: how much of a measurement is done. InputError for a text that fills no window.
        """
        self.text, self.first, self.steps = text, module, list[Step]()
        self._before, self._work, self._teacher = module, work, teacher or module
        self._forward, self._progress, self._line = report, progress, ""
        self._model: Reference | None = None
        self._known: dict[str, Evaluation] = {}
        self._add(module.facts.name, "as it was read", module)

    def report(self, line: str) -> None:
        """Keep a pass's line about its result."""
        self._line = line
        self._forward(line)

    def after(self, step: Pass, module: Module) -> None:
        """Measure the module after a pass."""
        curve = None
        if isinstance(step, Training) and self._work is not None:
            curve = curve_of(step, self._before, self._teacher, self._work)
        self._add(step.name, self._line.removeprefix(f"{step.name}: "), module, curve)
        self._before = module

    def artifact(self, name: str, done: str, size: int, logits: LogitsFunction | None) -> None:
        """Add the artifact of the last module. logits: those of the artifact, if it runs on this machine."""
        last, module = self.steps[-1], self._before
        quality = None if logits is None else self._score(module, logits)
        bits = 8 * size / last.weights
        self.steps.append(Step(name, done, last.layers, last.weights, size, bits, quality))

    def _add(self, name: str, done: str, module: Module, curve: str | None = None) -> None:
        layers, weights, size = len(module.layer_calls()), module.weight_count(), module.stored_bits() // 8
        quality = self._measured(module)
        self.steps.append(Step(name, done, layers, weights, size, module.bits_per_weight(), quality, curve))

    # ---- quality

    def _measured(self, module: Module) -> Evaluation:
        """The quality of a module; earlier measurements are read."""
        key = hashlib.sha256()
        for part in (digest(self.first), digest(module), repr((WINDOW, WINDOWS, module.facts.tokenizer))):
            key.update(part.encode())
        key.update(self.text.read_bytes() if self.text.is_file() else b"")
        name = key.hexdigest()[:16]
        if name not in self._known:
            found = self._read(name)
            if found is None:
                found = self._score(module, Reference(module).logits)
                self._write(name, found)
            self._known[name] = found
        return self._known[name]

    def _score(self, module: Module, logits: LogitsFunction) -> Evaluation:
        facts = module.facts
        length = min(WINDOW, facts.context_length)
        windows = text_windows(read_tokens(self.text, facts.tokenizer, facts.vocab_size), length, WINDOWS)
        if not windows:
            raise InputError(f"the text {self.text} is too short for a window of {length} tokens: give a longer one")
        comparable = facts.vocab_size == self.first.facts.vocab_size
        if comparable and self._model is None:
            self._model = Reference(self.first)
        against = self._model.logits if comparable and self._model is not None else None
        return score(logits, windows, against, self._progress).summary()

    def _path(self, name: str) -> Path | None:
        return None if self._work is None else self._work / f"measured-{name}.json"

    def _read(self, name: str) -> Evaluation | None:
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        try:
            return Evaluation(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None  # damaged: it is measured again

    def _write(self, name: str, found: Evaluation) -> None:
        path = self._path(name)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(found)), encoding="utf-8")
        os.replace(partial, path)


def digest(module: Module) -> str:
    """A hash of what a module computes: its functions and the values of its parameters."""
    found = hashlib.sha256()
    for function in module.functions.values():
        found.update(print_function(function).encode())
    for name, parameter in module.parameters.items():
        encoding = "float" if parameter.encoding.is_float else repr(parameter.encoding)
        found.update(f"{name} {parameter.shape} {encoding}".encode())
        found.update(parameter.values().contiguous().numpy().data)
    return found.hexdigest()


def table(steps: Sequence[Step]) -> str:
    """Print the steps for people, one line each."""
    rows = [["step", "layers", "MB", "bits", "perplexity"]]
    for step in steps:
        quality = "" if step.quality is None else f"{step.quality.perplexity:.2f}"
        rows.append([step.name, f"{step.layers}", f"{step.bytes / 1e6:,.1f}", f"{step.bits_per_weight:.2f}", quality])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
