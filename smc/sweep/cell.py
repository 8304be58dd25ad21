"""One cell of a sweep: a model with a setting, compiled and evaluated on a text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smc.distribution import VERSION
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.ir import Module
    from smc.passes import Pass

Kind = Literal["quant", "bits", "pass", "recipe", "kept"]


@dataclass(frozen=True)
class Setting:
    """How a model is quantized: by an option of `smc compile` (--quant, --bits, -p, --recipe) or not at all."""

    kind: Kind
    value: str = ""

    def __str__(self) -> str:
        """The setting as on the command line, for a report."""
        return {"quant": self.value, "kept": "as it is"}.get(self.kind, f"{self.kind} {self.value}")

    def passes(self) -> tuple[Pass, ...]:
        """The passes of the setting. InputError if one does not exist."""
        from smc.passes import QuantizeGuided, Rotate, load_recipe, parse_pass

        match self.kind:
            case "kept":
                return ()
            case "bits":
                return (Rotate(), QuantizeGuided(bits=float(self.value)))
            case "pass":
                return (parse_pass(self.value),)
            case _:
                return load_recipe(Path(self.value) if self.kind == "recipe" else self.value).passes


@dataclass(frozen=True)
class Cell:
    """A model with a setting, and how it is evaluated.

    reference: the model that logits are compared with. text: the file to evaluate on, at most `windows` windows of
    `window` tokens. calib: the calibration text; None: the one that comes with smc.
    """

    model: str
    setting: Setting
    reference: str
    text: str
    windows: int
    window: int
    calib: str | None = None

    @property
    def key(self) -> str:
        """The name of the result, a hash of all that it depends on; files count by size and time of writing."""
        facts: list[Any] = [VERSION, asdict(self)]
        files = [self.model, self.reference, self.text, self.calib or ""]
        files += [self.setting.value] if self.setting.kind == "recipe" else []
        facts += [_stamp(Path(name)) for name in files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _stamp(path: Path) -> list[Any]:
    if path.is_dir():
        return [[entry.name, *_stamp(entry)] for entry in sorted(path.iterdir()) if entry.is_file()]
    if not path.is_file():
        return []
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def judge(cell: Cell, artifact: Path) -> dict[str, Any]:
    """Compile a cell's model to `artifact` and evaluate it. The result is all that a report says, as values for JSON.

    `quality` is measured through the engine, so rounded inputs count. `errors`: of every matrix, the distance of its
    values from the reference's, as part of their norm. Raises InputError if the model can't be compiled or evaluated.
    """
    import smc
    from smc.reference import Reference
    from smc.reference.evaluation import score, text_windows
    from smc.reference.text import read_tokens

    right, module = smc.load_checkpoint(cell.reference), smc.load_checkpoint(cell.model)
    if right.facts.vocab_size != module.facts.vocab_size:
        raise InputError(f"{cell.model} and {cell.reference} have different vocabularies: choose another --reference")
    stored = frozenset(p.load for p in module.parameters.values() if not p.encoding.is_float)
    calib = Path(cell.calib) if cell.calib is not None else None
    module = smc.apply(module, cell.setting.passes(), calib, requantize=stored)
    report = smc.compile(module, "native", artifact)
    facts = module.facts
    length = min(cell.window, facts.context_length, right.facts.context_length)
    windows = text_windows(read_tokens(Path(cell.text), facts.tokenizer, facts.vocab_size), length, cell.windows)
    if not windows:
        raise InputError(
            f"the text {cell.text} is too short for a window of {length} tokens: give a longer text or a smaller "
            "--window"
        )
    with smc.load(artifact) as model:
        scores = score(_engine(model), windows, Reference(right).logits)
    quality = asdict(scores.summary("second-half"))
    return {
        "model": cell.model,
        "setting": str(cell.setting),
        "reference": cell.reference,
        "bits_per_weight": module.bits_per_weight(),
        "bytes": report.bytes,
        "windows": len(windows),
        "window": length,
        "quality": quality,
        "errors": errors(right, module),
        "encodings": {name: str(parameter.encoding) for name, parameter in module.parameters.items()},
    }


def _engine(model: Any) -> Callable[[Any], Any]:
    import torch

    return lambda tokens: torch.from_numpy(model.logits(tokens.tolist()))


def errors(right: Module, module: Module) -> dict[str, float]:
    """For every matrix that both modules have with the same shape: |values - right values| / |right values|."""
    found = {}
    for name, parameter in module.parameters.items():
        if (own := parameter.error()) is not None:
            found[name] = own
            continue
        other = right.parameters.get(name)
        if other is None or len(parameter.shape) < 2 or other.shape != parameter.shape:
            continue
        expected = other.values()
        norm = expected.norm().item()
        found[name] = (parameter.values() - expected).norm().item() / norm if norm else 0.0
    return found
