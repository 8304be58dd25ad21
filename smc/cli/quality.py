"""What quantizing cost, measured before a model is compiled: for the artifact and the summary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from smc.errors import InputError

if TYPE_CHECKING:
    from smc.ir import Module
    from smc.runtime.manifest import MatrixQuality, QualityFacts

MUCH = 0.3
"""From this mean KL divergence on a model answers noticeably otherwise: about what plain 4 bits do to a small one."""

DIGITS = 4
"""Of what is kept: the rest is noise of the machine's sums."""


def measure(
    before: Module, module: Module, calib: Path | None, progress: Callable[[float], None] = lambda fraction: None
) -> QualityFacts:
    """A quantized model beside the one before, on windows of the calibration text that calibration does not see.

    Both run in torch, a layer in memory at a time. InputError where the text is too short to hold windows out.
    """
    from smc.reference import SHIPPED_TEXT, CalibrationText
    from smc.reference.evaluation import compare
    from smc.runtime.manifest import QualityFacts

    path = calib or SHIPPED_TEXT
    windows = CalibrationText.read(path, before.facts).held_out
    if not windows:
        raise InputError(f"the text {path} is too short to judge by: it has no window to hold out")
    scores, others = compare(module, before, windows, progress)
    found = scores.summary("second-half")
    assert found.kl_divergence is not None
    assert found.same_top is not None
    return QualityFacts(
        text=path.name if calib is not None else "the text that comes with smc",
        windows=len(windows),
        window=len(windows[0]),
        kl_divergence=_rounded(found.kl_divergence),
        perplexity=_rounded(found.perplexity),
        before=_rounded(others.summary("second-half").perplexity),
        same_top=_rounded(found.same_top),
        kl_error=None if found.kl_error is None else _rounded(found.kl_error),
        matrices=_matrices(module),
    )


def warning(quality: QualityFacts) -> str | None:
    """A sentence for a model that lost much; None for others."""
    if quality.kl_divergence < MUCH:
        return None
    return (
        f"this model lost much: its KL divergence from the one before is {quality.kl_divergence:.2g}. Take more bits "
        "(--bits), or train it to be so small (docs/training.md)"
    )


def _matrices(module: Module) -> dict[str, MatrixQuality]:
    """The error of every matrix that was quantized, and what a pass expected of its widths."""
    from smc.runtime.manifest import MatrixQuality

    found = {}
    for name, parameter in module.parameters.items():
        error = parameter.error()
        if error is not None:
            costs = {str(bits): _rounded(cost) for bits, cost in parameter.costs.items()}
            found[name] = MatrixQuality(parameter.encoding.bits, _rounded(error), costs)
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
